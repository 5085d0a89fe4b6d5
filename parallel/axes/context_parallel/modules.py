"""Give the modules of a model the positions of this rank, and attention over those of all ranks."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paralab.axes.context_parallel.pieces import Take, take_piece, taken_by, whole_of
from paralab.axes.context_parallel.ring import Ring
from paralab.axes.context_parallel.ulysses import Ulysses
from paralab.models.sequence import Attend, Whole
from paralab.processes.mesh import Mesh


def connect(part: nn.Module, *, mesh: Mesh, causal: bool, compiled: bool = False) -> None:
    """Have a part compute the positions of this rank, in place. compiled: whether its blocks will be."""
    _share(part, taken_by(mesh.rank("cp"), mesh.layout, causal=causal), mesh.size("cp"))
    over = Ring if mesh.layout.cp_style == "ring" else Ulysses
    for module in part.modules():
        if isinstance(module, Attend):
            attention = over(mesh.group("cp"), causal=module.causal)
            module.over = torch.compiler.disable(attention) if compiled else attention
        if isinstance(module, Whole):
            collect = _collected(mesh, causal=causal)
            module.over = torch.compiler.disable(collect) if compiled else collect


def _collected(mesh: Mesh, *, causal: bool) -> Callable[[Tensor], Tensor]:
    """Return what gives the positions of all ranks of those (batch, seq / ranks, ...) of this one."""
    gather, whole = mesh.all_gather("cp"), whole_of(mesh.layout, causal=causal)
    return lambda x: whole(gather(x))


def keep_one_piece(part: nn.Module, *, ranks: int) -> None:
    """Have a part on the meta device compute as many positions as a rank has, in place."""
    _share(part, take_piece(0, ranks), ranks)
    for module in part.modules():
        if isinstance(module, Whole):
            module.over = lambda x: torch.cat([x] * ranks, 1)


def _share(part: nn.Module, take: Take, ranks: int) -> None:
    for module in list(part.modules()):
        if share := getattr(module, "share_sequence", None):
            share(take, ranks)
