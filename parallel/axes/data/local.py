"""Local steps: data ranks train apart for N steps, and then bring their parameters together (`/localN`).

With `--outer-optimizer average` that is local SGD (Stich 2019, arXiv:1805.09767): every N steps ranks take the mean of
their parameters. With `nesterov` it is DiLoCo (Douillard et al. 2023, arXiv:2311.08105): how far the mean has moved
since the last meeting is a gradient for an outer Nesterov optimizer, with the learning rate and the momentum of that
paper. Each rank keeps its own inner optimizer states.

With `--outer-fragments P` ranks meet about a part of the model at a time (streaming DiLoCo, Douillard et al. 2025,
arXiv:2501.18512): each fragment every N steps, at steps of its own, so that at once only its bytes are
sent. What ranks last agreed on, fragment by fragment, is then the model that is evaluated and saved. With
`--outer-overlap T` a fragment's message travels while ranks take T more steps (also there): the outer step comes
then, from what they had when they sent, and a rank goes on halfway between its own parameters and what it gives.
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

LEARNING_RATE, MOMENTUM = 0.7, 0.9  # of the outer optimizer: Douillard et al. 2023
MIXING = 0.5  # what stays of a rank's own where it went on meanwhile, in the place of alpha of Douillard et al. 2025


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

    def __init__(
        self,
        parts: Sequence[Sequence[Tensor]],
        *,
        every: int,
        outer: OuterOptimizer,
        mesh: Mesh,
        overlap: int = 0,
    ) -> None:
        """parts: the fragments, of parameters of any shape, whole or DTensors of axes other than the data axis.

        overlap: steps in which a message travels, fewer than `every`; more than 0 with an outer optimizer alone.
        """
        self.every, self.overlap, self.steps = every, overlap, 0
        self.parts = [_Fragment(parameters, outer=outer, mesh=mesh, waits=overlap == 0) for parameters in parts]

    @torch.no_grad()
    def __call__(self) -> None:
        self.steps += 1
        for number, part in enumerate(self.parts):
            since = (self.steps - meeting_step(number, every=self.every, count=len(self.parts))) % self.every
            if since == 0:
                part.send()
            if since == self.overlap:
                part.receive()

    @property
    def states(self) -> Sequence[Tensor]:
        """What is kept from step to step, of the shapes of the parameters."""
        return [state for part in self.parts for state in (*part.before, *part.momentum, *part.copies)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Begin where parameters are now, after something else than an update gave them values."""
        for part in self.parts:
            part.arrive()  # and what it says is forgotten
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
    """Some of the parameters. before, momentum: of the outer optimizer, where there is one: where ranks last met.

    copies: what is under way, where ranks go on meanwhile; else they wait, and parameters themselves are summed.
    """

    def __init__(self, parameters: Sequence[Tensor], *, outer: OuterOptimizer, mesh: Mesh, waits: bool) -> None:
        self.group, self.ranks = mesh.group("dp"), mesh.size("dp")
        self.parameters = [local(p.detach()) for p in parameters]
        self.copies = [] if waits else [torch.zeros_like(p) for p in self.parameters]
        self.sent = self.copies or self.parameters
        self.works: list[dist.Work] = []
        self.before: list[Tensor] = []
        self.momentum: list[Tensor] = []
        if outer == "nesterov":
            self.before = [p.clone() for p in self.parameters]
            self.momentum = [torch.zeros_like(p) for p in self.parameters]

    def send(self) -> None:
        """Begin to take the mean over data ranks."""
        for copy, parameter in zip(self.copies, self.parameters, strict=False):
            copy.copy_(parameter)
        self.works = [dist.all_reduce(x, group=self.group, async_op=True) for x in self.sent]

    def arrive(self) -> bool:
        """Wait for what is under way, and return whether anything was."""
        for work in self.works:
            work.wait()
        came, self.works = bool(self.works), []
        return came

    def receive(self) -> None:
        """Take the mean, and from it the outer step. A stage of a pipeline may have no block of a fragment."""
        if not self.arrive():
            return
        torch._foreach_div_(self.sent, self.ranks)
        if self.before:
            self._update()

    def _update(self) -> None:
        """Step from where ranks last met by the outer optimizer, and meet there, or halfway."""
        moved = torch._foreach_sub(self.before, self.sent)
        torch._foreach_mul_(self.momentum, MOMENTUM)
        torch._foreach_add_(self.momentum, moved)
        torch._foreach_add_(moved, self.momentum, alpha=MOMENTUM)
        torch._foreach_add_(self.before, moved, alpha=-LEARNING_RATE)
        if self.copies:
            torch._foreach_lerp_(self.parameters, self.before, 1 - MIXING)
        else:
            torch._foreach_copy_(self.parameters, self.before)
