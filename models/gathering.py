"""Gather what all data ranks hold of a batch, with its gradient: for losses that are no mean over samples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paralab.models.spec import keep


class Gathering:
    """Mixin of modules whose input (samples, ...) is gathered over the data ranks, which all go on with the whole.

    `all_gather(x)` returns that of all ranks in their order (ranks, samples, ...), not differentiable. A strategy
    replaces it, and says how many `ranks` there are and which `rank` this is; `gathered` calls it.
    """

    ranks: int = 1
    rank: int = 0
    all_gather: Callable[[Tensor], Tensor] = staticmethod(keep)

    def gathered(self, x: Tensor) -> Tensor:
        """Return x (samples, ...) of all ranks, (ranks, samples, ...), to which gradients flow."""
        return x[None] if self.ranks == 1 else _Gather.apply(x, self.all_gather, self.rank, self.ranks)


class _Gather(torch.autograd.Function):
    """Gather in forward; in backward nothing is sent.

    Each rank computes the same loss from what was gathered, and so has the gradient of its own part, which no other
    rank goes through. What averages gradients over the ranks divides it by their number: it is multiplied by it here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, all_gather: Callable[[Tensor], Tensor], rank: int, ranks: int) -> Tensor:
        ctx.rank, ctx.ranks = rank, ranks
        return all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad[ctx.rank] * ctx.ranks, None, None, None
