"""ZeRO-3 (FSDP2) with Accelerate."""

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from net import data, loss_of, make
from torch.utils.data import DataLoader

if not torch.cuda.is_available():  # on CPUs alone
    from accelerate import DistributedType, PartialState  # on CPUs alone

    PartialState(backend="gloo").distributed_type = DistributedType.MULTI_GPU  # on CPUs alone
plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    auto_wrap_policy="transformer_based_wrap",
    transformer_cls_names_to_wrap=["Block"],
    cpu_ram_efficient_loading=False,
)
accelerator = Accelerator(fsdp_plugin=plugin)
model = make()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, 16 // accelerator.num_processes))
for inputs, targets in loader:
    loss = loss_of(model(inputs), targets)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.print(f"loss {accelerator.reduce(loss.detach(), 'mean').item():.4f}")
