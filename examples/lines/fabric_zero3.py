"""ZeRO-3 (FSDP2) with Lightning Fabric."""

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import ModelParallelStrategy
from net import Net, data, loss_of, make
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader


def shard(model: Net, mesh: DeviceMesh) -> Net:
    for part in (*model.layers, model):
        fully_shard(part, mesh=mesh["data_parallel"])
    return model


fabric = Fabric(devices=2, strategy=ModelParallelStrategy(shard, data_parallel_size=2, tensor_parallel_size=1))
fabric.launch()
model = fabric.setup_module(make())
optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=1e-3))
loader = fabric.setup_dataloaders(DataLoader(data, 16 // fabric.world_size))
for inputs, targets in loader:
    loss = loss_of(model(inputs), targets)
    fabric.backward(loss)
    fabric.clip_gradients(model, optimizer, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad()
    fabric.print(f"loss {fabric.all_reduce(loss.detach(), reduce_op='mean').item():.4f}")
