"""A model of one's own under ZeRO-3: parameters, gradients and optimizer states are divided over the processes.

torchrun --nproc-per-node 2 examples/zero3.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paralab


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.layers = nn.ModuleList([Block(width) for _ in range(depth)])  # found, and gathered one at a time
        self.head = nn.Linear(width, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 100, (64, 9))
    batches = [(part[:, :-1], part[:, 1:]) for part in tokens.split(16)]
    with paralab.join() as world:
        trainer = paralab.parallelize(
            Net, "zero3", world=world, loss=loss, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3), clip_norm=1.0
        )
        world.print(trainer.layout, paralab.prove(trainer, batches))
        for inputs, targets in trainer.shard(batches):
            world.print(f"loss {trainer.step(inputs, targets).loss:.4f}")


if __name__ == "__main__":
    main()
