"""Tensor parallelism of one's own model: a plan says which layers are split by outputs, and which by inputs.

torchrun --nproc-per-node 2 examples/tensor_plan.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paralab


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads  # the number of heads is read from the projection: a rank has a part of them
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.layers = nn.ModuleList([Attention(width, heads=4) for _ in range(depth)])
        self.head = nn.Linear(width, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


PLAN = {"layers.*.q": "column", "layers.*.k": "column", "layers.*.v": "column", "layers.*.out": "row"}


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 100, (32, 9))
    batches = [(tokens[:, :-1], tokens[:, 1:])]
    with paralab.join() as world:
        trainer = paralab.parallelize(
            Net,
            f"tp{world.size}",
            world=world,
            tensor=PLAN,
            loss=lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()),
        )
        world.print(trainer.layout, paralab.prove(trainer, batches))


if __name__ == "__main__":
    main()
