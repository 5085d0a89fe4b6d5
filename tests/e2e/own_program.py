"""A program with a module of its own, in which the ranks do not do the same: what it is comes as an argument."""

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

import paralab
from tests.dist.own_modules import Block, Plain, words, words_loss


class Uneven(Plain):
    """Skips a block in the second step, or a branch of one, on rank 1."""

    def __init__(self, mistake: str, rank: int) -> None:
        super().__init__()
        self.steps = 0
        self.skips, self.branches = mistake == "block" and rank == 1, mistake == "branch"
        self.layers[2] = Branched(leaves_out=self.branches and rank == 1)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embed(inputs)
        self.steps += 1
        for number, layer in enumerate(self.layers):
            x = x if self.skips and self.steps == 2 and number == 1 else layer(x)
        return self.head(self.norm(x))


class Branched(Block):
    def __init__(self, *, leaves_out: bool) -> None:
        super().__init__()
        self.leaves_out = leaves_out

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.norm(x)) if self.leaves_out else super().forward(x)


def main() -> None:
    mistake = sys.argv[1]
    with paralab.join() as world:
        torch.manual_seed(0)
        model = Uneven(mistake, world.rank)
        trainer = paralab.parallelize(model, "zero3", world=world, loss=words_loss, blocks="layers.*")
        batch = words(torch.Generator().manual_seed(0))
        for _ in range(2 if mistake == "batches" and world.rank == 1 else 5):
            trainer.step(*batch)
        world.print("trained")


if __name__ == "__main__":
    main()
