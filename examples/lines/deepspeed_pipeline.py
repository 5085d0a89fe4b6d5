"""Pipeline stages with DeepSpeed."""

import deepspeed
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from net import data, loss_of, make
from torch.utils.data import DataLoader

config = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}},
}
deepspeed.init_distributed()
net = make()
model = PipelineModule([net.embed, *net.layers, net.head], num_stages=2, loss_fn=loss_of)
engine, *_ = deepspeed.initialize(model=model, config=config)
batches = iter(DataLoader(data, 4))
for _ in range(len(data) // 16):
    loss = engine.train_batch(batches)
    if dist.get_rank() == 0:
        print(f"loss {loss.item():.4f}")
