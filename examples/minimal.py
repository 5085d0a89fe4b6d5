"""Train a small network on all processes, and prove that it computes what one process computes.

torchrun --nproc-per-node 2 examples/minimal.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import paralab

torch.manual_seed(0)
features, labels = torch.randn(256, 20), torch.randint(0, 5, (256,))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(features, labels), batch_size=32, shuffle=True)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 5))


def main() -> None:
    with paralab.join() as world:
        layout = "ddp" if world.size > 1 else "single"
        trainer = paralab.parallelize(make_model, layout, world=world, loss=F.cross_entropy)
        world.print(layout, paralab.prove(trainer, loader))
        for epoch in range(3):
            for inputs, targets in trainer.shard(loader):
                step = trainer.step(inputs, targets)
            world.print(f"epoch {epoch}: loss {step.loss:.4f}")


if __name__ == "__main__":
    main()
