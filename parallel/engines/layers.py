"""The root mean square of every parameter, of its gradient and of its update in one step, over all ranks.

Each rank squares the pieces that it holds, divides by how many ranks hold the same piece, as the gradient norm does,
and one all-reduce of all these numbers gives the sums over whole parameters. A parameter of n numbers whose squares add
up to s has the root mean square sqrt(s / n).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.axes.initialise import local
from paralab.engines.native import NativeEngine, row_norms


@dataclass(frozen=True)
class LayerRms:
    """Root mean squares of one step, equal on every rank.

    names: full names of parameters, as one process has them. numels: how many numbers each has, over all ranks. values:
    (3, names) float64, of weights before the update, of gradients before clipping, and of updates; not yet read.
    """

    names: Sequence[str]
    numels: Sequence[int]
    values: Tensor


class LayerStats:
    """Measures single steps of an engine. Every rank makes one; a step with it takes one more small all-reduce.

    Such a step needs room for a copy of the parameters that this rank holds. The gradient of a parameter that took no
    part in the step counts as 0. Where ranks train apart for several steps, the mean of the squares is over them too.
    """

    def __init__(self, engine: NativeEngine) -> None:
        context = engine.context
        whole = {name: p.numel() for name, p in context.new_model().named_parameters()}
        self.engine, self.names, self.numels = engine, list(whole), list(whole.values())
        names = {id(p): context.tied.get(name, name) for name, p in engine.parameters()}
        held = [p for p in (piece.parameter for piece in engine.pieces) if id(p) not in engine.duplicates]
        place = {name: index for index, name in enumerate(self.names)}
        self.held, device = held, context.mesh.device
        self.places = torch.tensor([place[names[id(p)]] for p in held], device=device)
        self.copies = torch.tensor([engine.copies[id(p)] for p in held], dtype=torch.float64, device=device)
        self.sums = torch.zeros(3, len(whole), dtype=torch.float64, device=device)
        self.before: list[Tensor] = []

    @contextmanager
    def of_a_step(self) -> Iterator[None]:
        """Measure the one step that the engine takes within."""
        self.sums.zero_()
        self.engine.watched_by = self
        try:
            yield
        finally:
            self.engine.watched_by = None

    @torch.no_grad()
    def before_update(self) -> None:
        """Take note of weights and gradients, when these are whole and not clipped yet."""
        scale = self.engine.loss_scale.value
        self.before = [local(p).detach().clone() for p in self.held]
        self._add(0, self.before)
        self._add(1, [torch.zeros(()) if p.grad is None else local(p.grad) for p in self.held], scale=scale)

    @torch.no_grad()
    def after_update(self) -> None:
        """Take note of what the update has changed."""
        torch._foreach_sub_(self.before, [local(p).detach() for p in self.held])
        self._add(2, self.before)
        self.before = []

    def _add(self, row: int, tensors: list[Tensor], *, scale: float = 1.0) -> None:
        """Add the squares of these, of any shapes, to a row of sums."""
        rows = [row_norms(tensor) for tensor in tensors]
        norms = [norm.to(self.sums.device) for norm in torch._foreach_norm(rows, dtype=torch.float64)]
        self.sums[row].index_add_(0, self.places, (torch.stack(norms) / scale).square() / self.copies)

    def read(self) -> LayerRms:
        """Return what was measured, put together over all ranks. Collective."""
        sums, world = self.sums.clone(), self.engine.context.mesh.world
        if world is not None:
            dist.all_reduce(sums, group=world)
        return LayerRms(self.names, self.numels, (sums / torch.tensor(self.numels, device=sums.device)).sqrt())
