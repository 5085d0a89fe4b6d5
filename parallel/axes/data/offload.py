"""Optimizer states in the memory of the host (`/offload-optimizer`; ZeRO-Offload: Ren et al. 2021, arXiv:2101.06840).

The optimizer of a rank updates copies of its pieces that lie in the host's memory: gradients are copied there, and
updated pieces back. On a CPU both are the same memory, and the copy is what it costs. (`/offload-parameters` is the
policy of FSDP2, in `zero`.)
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from paralab.axes.optimizer import Piece


def on_host(pieces: list[Piece]) -> list[Piece]:
    """Return the same pieces, of which the optimizer updates copies in the memory of the host."""
    return [replace(piece, updated=nn.Parameter(_there(piece).to("cpu", copy=True))) for piece in pieces]


class OnHost:
    """What follows an update of copies: called, it brings them to the parameters.

    then: what follows an update besides, such as sending the pieces to the other ranks.
    """

    def __init__(self, pieces: list[Piece], then: Callable[[], None] | None) -> None:
        self.pieces, self.then = pieces, then

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the parameters anew, after something else than an update gave them values."""
        for piece in self.pieces:
            piece.updated.copy_(_there(piece))

    @torch.no_grad()
    def __call__(self) -> None:
        for piece in self.pieces:
            _there(piece).copy_(piece.updated, non_blocking=True)
        if self.then is not None:
            self.then()


def _there(piece: Piece) -> Tensor:
    """Return the piece of the parameter itself, on its device."""
    return piece.of(piece.parameter.detach())
