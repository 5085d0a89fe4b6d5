"""Data parallelism with DeepSpeed."""

import deepspeed
import torch.distributed as dist
from net import data, loss_of, make
from torch.utils.data import DataLoader, DistributedSampler

config = {
    "train_batch_size": 16,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
    "zero_optimization": {"stage": 0},
}
deepspeed.init_distributed()
engine, *_ = deepspeed.initialize(model=make(), config=config)
loader = DataLoader(data, 16 // dist.get_world_size(), sampler=DistributedSampler(data, shuffle=False))
for inputs, targets in loader:
    inputs, targets = inputs.to(engine.device), targets.to(engine.device)
    loss = loss_of(engine(inputs), targets)
    engine.backward(loss)
    engine.step()
    mean = loss.detach() / dist.get_world_size()
    dist.all_reduce(mean)
    if dist.get_rank() == 0:
        print(f"loss {mean.item():.4f}")
