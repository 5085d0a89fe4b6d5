"""Tensor parallelism with Lightning Fabric."""

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from net import Net, data, loss_of, make
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.utils.data import DataLoader

PLAN = {  # of every parameter: the gradient norm does not take sharded and plain tensors together
    "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
    "layers.*.norm": SequenceParallel(),
    "layers.*.up": ColwiseParallel(input_layouts=Shard(1)),
    "layers.*.down": RowwiseParallel(output_layouts=Shard(1)),
    "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
}


def split(model: Net, mesh: DeviceMesh) -> Net:
    return parallelize_module(model, mesh["tensor_parallel"], PLAN)


fabric = Fabric(devices=2, strategy=ModelParallelStrategy(split, data_parallel_size=1, tensor_parallel_size=2))
fabric.launch()
model = fabric.setup_module(make())
optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-3))
loader = fabric.setup_dataloaders(DataLoader(data, 16))
for inputs, targets in loader:
    loss = loss_of(model(inputs), targets)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    fabric.print(f"loss {fabric.all_reduce(loss.detach(), reduce_op='mean').item():.4f}")
