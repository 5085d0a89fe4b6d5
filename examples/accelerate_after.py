"""The script of `accelerate_before.py`, moved over: the same losses, and any layout in the place of data parallelism.

torchrun --nproc-per-node 2 examples/accelerate_after.py
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import paralab

torch.manual_seed(0)
data = TensorDataset(torch.randn(256, 20), torch.randint(0, 5, (256,)))


def main() -> None:
    with paralab.join() as world:
        trainer = paralab.parallelize(
            nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 5)),
            "zero2" if world.size > 1 else "single",
            world=world,
            loss=F.cross_entropy,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=4),
            clip_norm=1.0,
        )
        for inputs, targets in trainer.shard(DataLoader(data, batch_size=32)):
            world.print(f"loss {trainer.step(inputs, targets).loss:.4f}")


if __name__ == "__main__":
    main()
