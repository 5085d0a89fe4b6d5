"""Which positions of a sequence a rank has.

In a causal ring each rank has one early and one late piece of 2 x ranks: of the products of queries with keys that the
mask leaves, every rank then has as many (Brandon et al. 2023, Striped Attention; the order is that of Zhu 2024, zigzag
ring attention). Otherwise it has one piece, in the order of ranks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from paralab.layout import Layout

Take = Callable[[Tensor, int], Tensor]


def taken_by(rank: int, layout: Layout, *, causal: bool) -> Take:
    """Return what takes the positions of a rank, of a model whose attention is causal or not."""
    kind = take_early_and_late if layout.cp_style == "ring" and causal else take_piece
    return kind(rank, layout.cp)


def whole_of(layout: Layout, *, causal: bool) -> Callable[[Tensor], Tensor]:
    """Return what puts together (batch, seq, ...) of (ranks, batch, seq / ranks, ...), the positions of each rank."""
    halves = layout.cp_style == "ring" and causal

    def whole(every: Tensor) -> Tensor:
        if not halves:
            return torch.cat(every.unbind(), 1)
        early, late = every.chunk(2, 2)
        return torch.cat((*early.unbind(), *late.flip(0).unbind()), 1)

    return whole


def take_piece(rank: int, ranks: int) -> Take:
    """Return what takes the piece of one rank of tensors of any shape, along a dim that the ranks divide."""

    def take(x: Tensor, dim: int) -> Tensor:
        return x.chunk(ranks, dim)[rank]

    return take


def take_early_and_late(rank: int, ranks: int) -> Take:
    """Return the same for piece `rank` from the beginning and from the end, of 2 x ranks."""

    def take(x: Tensor, dim: int) -> Tensor:
        pieces = x.chunk(2 * ranks, dim)
        return torch.cat((pieces[rank], pieces[-1 - rank]), dim)

    return take
