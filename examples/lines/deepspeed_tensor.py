"""Tensor parallelism with DeepSpeed."""

import deepspeed
import torch.distributed as dist
from net import data, loss_of, make
from torch.utils.data import DataLoader

config = {
    "train_batch_size": 16,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
    "tensor_parallel": {
        "autotp_size": 2,
        "partition_config": {
            "layer_specs": [
                {"patterns": [r".*\.up\.weight$"], "partition_type": "column"},
                {"patterns": [r".*\.down\.weight$"], "partition_type": "row"},
            ]
        },
    },
}
deepspeed.init_distributed()
engine, *_ = deepspeed.initialize(model=make(), config=config)
loader = DataLoader(data, 16)
for inputs, targets in loader:
    inputs, targets = inputs.to(engine.device), targets.to(engine.device)
    loss = loss_of(engine(inputs), targets)
    engine.backward(loss)
    engine.step()
    mean = loss.detach() / dist.get_world_size()
    dist.all_reduce(mean)
    if dist.get_rank() == 0:
        print(f"loss {mean.item():.4f}")
