"""A way of splitting of one's own: an axis whose ranks repeat each other's work, with a word of its own in layouts.

torchrun --nproc-per-node 2 examples/own_axis.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import paralab
from paralab import Axis, register_axis


class Repeated(Axis):
    """Ranks that hold and do the same. What an axis may change, each in a method of this class: docs/design/axes.md."""

    name, title, place = "rr", "repeated", 5


def main() -> None:
    register_axis(Repeated())
    torch.manual_seed(0)
    batch = torch.randn(32, 20), torch.randint(0, 5, (32,))
    with paralab.join() as world:
        trainer = paralab.parallelize(
            lambda: nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 5)),
            f"rr{world.size}",
            world=world,
            loss=F.cross_entropy,
        )
        world.print(trainer.layout, paralab.prove(trainer, [batch]))


if __name__ == "__main__":
    main()
