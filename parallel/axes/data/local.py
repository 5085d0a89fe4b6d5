"""Local steps: data ranks train apart for N steps, and then bring their parameters together (`/localN`).

With `--outer-optimizer average` that is local SGD (Stich 2019, arXiv:1805.09767): every N steps ranks take the mean of
their parameters. With `nesterov` it is DiLoCo (Douillard et al. 2023, arXiv:2311.08105): how far the mean has moved
since the last meeting is a gradient for an outer Nesterov optimizer, with the learning rate and the momentum of that
paper. Each rank keeps its own inner optimizer states.

With `--outer-fragments P` ranks meet about a part of the model at a time (streaming DiLoCo, Douillard et al. 2025,
arXiv:2501.18512, section 2.2): each fragment every N steps, at steps of its own, so that at once only its bytes are
sent. What ranks last agreed on, fragment by fragment, is then the model that is evaluated and saved.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.axes.blocks import block_of
from paralab.axes.initialise import local
from paralab.options.choices import OuterOptimizer
from paralab.processes.mesh import Mesh

LEARNING_RATE, MOMENTUM = 0.7, 0.9  # of the outer optimizer: Douillard et al. 2023, section 3.1


def fragments(named: Sequence[tuple[str, Tensor]], blocks: Sequence[str], count: int) -> list[list[Tensor]]:
    """Return parameters of any shape in so many fragments: block i is in fragment i mod `count`.

    That is the strided pattern of Douillard et al. 2025. What lies outside of blocks is in the last fragment, which has
    no more blocks than any other. blocks: full names, in order.
    """
    found: list[list[Tensor]] = [[] for _ in range(count)]
    for name, parameter in named:
        block = block_of(name, blocks)
        found[count - 1 if block is None else block % count].append(parameter)
    return found


def meeting_step(fragment: int, *, every: int, count: int) -> int:
    """Return after which of every so many steps (1 to `every`) ranks meet about a fragment: the last one at the end."""
    return (fragment + 1) * every // count


class LocalSteps:
    """Called after each update of the inner optimizer; meets the other data ranks every `every` calls.

    About the last fragment it meets in the last of these, about those before it earlier.
    """

    def __init__(self, parts: Sequence[Sequence[Tensor]], *, every: int, outer: OuterOptimizer, mesh: Mesh) -> None:
        """parts: the fragments, of parameters of any shape, whole or DTensors of axes other than the data axis."""
        self.every, self.steps = every, 0
        self.parts = [_Fragment(parameters, outer=outer, mesh=mesh) for parameters in parts]

    @torch.no_grad()
    def __call__(self) -> None:
        self.steps += 1
        for number, part in enumerate(self.parts):
            if (self.steps - meeting_step(number, every=self.every, count=len(self.parts))) % self.every == 0:
                part.meet()

    @property
    def states(self) -> Sequence[Tensor]:
        """What is kept from step to step, of the shapes of the parameters."""
        return [state for part in self.parts for state in (*part.before, *part.momentum)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Begin where parameters are now, after something else than an update gave them values."""
        for part in self.parts:
            for before, parameter in zip(part.before, part.parameters, strict=False):
                before.copy_(parameter)

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """Have parameters be those that ranks last agreed on, where an outer optimizer keeps them, while entered."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for part in self.parts:
            for before, parameter in zip(part.before, part.parameters, strict=False):
                kept = parameter.clone()
                parameter.copy_(before)
                before.copy_(kept)


class _Fragment:
    """Some of the parameters. before, momentum: of the outer optimizer, where there is one: where ranks last met."""

    def __init__(self, parameters: Sequence[Tensor], *, outer: OuterOptimizer, mesh: Mesh) -> None:
        self.group, self.ranks = mesh.group("dp"), mesh.size("dp")
        self.parameters = [local(p.detach()) for p in parameters]
        self.before: list[Tensor] = []
        self.momentum: list[Tensor] = []
        if outer == "nesterov":
            self.before = [p.clone() for p in self.parameters]
            self.momentum = [torch.zeros_like(p) for p in self.parameters]

    def meet(self) -> None:
        """Take the mean over data ranks, and from it the outer step."""
        if not self.parameters:  # a stage of a pipeline may have none of its blocks
            return
        works = [dist.all_reduce(p, group=self.group, async_op=True) for p in self.parameters]
        for work in works:
            work.wait()
        torch._foreach_div_(self.parameters, self.ranks)
        if self.before:
            self._update()

    def _update(self) -> None:
        """Step from where ranks last met by the outer optimizer, and meet there."""
        moved = torch._foreach_sub(self.before, self.parameters)
        torch._foreach_mul_(self.momentum, MOMENTUM)
        torch._foreach_add_(self.momentum, moved)
        torch._foreach_add_(moved, self.momentum, alpha=MOMENTUM)
        torch._foreach_add_(self.before, moved, alpha=-LEARNING_RATE)
        torch._foreach_copy_(self.parameters, self.before)
