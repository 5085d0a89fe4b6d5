"""Give the modules of a model the positions of this rank, and attention over those of all ranks."""

import torch
from torch import nn

from paralab.axes.context_parallel.pieces import Take, take_piece, taken_by
from paralab.axes.context_parallel.ring import Ring
from paralab.axes.context_parallel.ulysses import Ulysses
from paralab.models.sequence import Attend
from paralab.processes.mesh import Mesh


def connect(part: nn.Module, *, mesh: Mesh, causal: bool, compiled: bool = False) -> None:
    """Have a part compute the positions of this rank, in place. compiled: whether its blocks will be."""
    _share(part, taken_by(mesh.rank("cp"), mesh.layout, causal=causal), mesh.size("cp"))
    over = Ring if mesh.layout.cp_style == "ring" else Ulysses
    for module in part.modules():
        if isinstance(module, Attend):
            attention = over(mesh.group("cp"), causal=module.causal)
            module.over = torch.compiler.disable(attention) if compiled else attention


def keep_one_piece(part: nn.Module, *, ranks: int) -> None:
    """Have a part on the meta device compute as many positions as a rank has, in place."""
    _share(part, take_piece(0, ranks), ranks)


def _share(part: nn.Module, take: Take, ranks: int) -> None:
    for module in list(part.modules()):
        if share := getattr(module, "share_sequence", None):
            share(take, ranks)
