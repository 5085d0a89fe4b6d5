"""A sequence of which a rank may compute some positions only: where a model cuts it, and where it looks at all of it.

A model that can be split along its sequence says so by `SequenceShape` (`ModelSpec.sequence`). It follows two rules:
tokens, tables of positions and targets pass through `Sequence.take`, and the products of queries with keys are those of
`Attend`. What looks at a whole sequence otherwise, without a gradient, has `Whole` give it. Alone, `take` and `Whole`
keep what they are given, and `Attend` is torch's own attention; the context axis replaces all three.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class SequenceShape:
    """What divides, where a model is split along its sequence. length: positions. causal: whether none looks ahead."""

    length: int
    heads: int
    kv_heads: int
    causal: bool


def take_all(x: Tensor, dim: int) -> Tensor:
    """Return a tensor of any shape as it is: the positions along `dim` of the only rank."""
    return x


class Sequence:
    """Mixin of modules that are given whole sequences, or have to know which positions theirs are.

    take(x, dim): the positions that this rank computes, of x whose dim `dim` is the whole sequence. ranks: that share a
    sequence, each with equally many positions.
    """

    ranks: int = 1
    take: Callable[[Tensor, int], Tensor] = staticmethod(take_all)

    def share_sequence(self, take: Callable[[Tensor, int], Tensor], ranks: int) -> None:
        """Have this rank compute the positions that `take` takes, of tensors of any shape."""
        self.take, self.ranks = take, ranks

    def own_positions(self, x: Tensor, *, start: int = 0) -> Tensor:
        """Return the positions (seq,) of x (batch, seq, ...), which this rank has, in fp32 or the wider dtype of x.

        start: the position of the first token of the whole sequence.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        whole = torch.arange(start, start + x.shape[1] * self.ranks, dtype=dtype, device=x.device)
        return self.take(whole, 0)


class Whole(nn.Module):
    """What all ranks of a sequence made of their positions, without a gradient. over: what collects it; None alone."""

    over: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Take x (batch, seq, ...), of the positions of this rank; return that of all positions, in their order."""
        return x if self.over is None else self.over(x)


class Attend(nn.Module):
    """Attention of queries over all keys of their sequence, or over those up to their own position (causal).

    over: what computes it where other ranks have some of the keys; None for torch's own. queries: heads of queries that
    share a head of keys and values. value_width: elements of a head of values; None for as many as keys have.
    """

    over: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __init__(self, *, causal: bool, queries: int = 1, value_width: int | None = None) -> None:
        super().__init__()
        self.causal, self.queries, self.value_width = causal, queries, value_width

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take q (batch, heads, seq, head_dim), k and v (batch, heads / queries, seq, head_dim); return q's shape.

        With a `value_width` that is the last dim of v, and of what is returned.
        """
        if self.over is not None:
            return self.over(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.queries > 1)
