"""Local steps: data ranks train apart for N steps, and then bring their parameters together (`/localN`).

With `--outer-optimizer average` that is local SGD (Stich 2019, arXiv:1805.09767): every N steps ranks take the mean of
their parameters. With `nesterov` it is DiLoCo (Douillard et al. 2023, arXiv:2311.08105): how far the mean has moved
since the last meeting is a gradient for an outer Nesterov optimizer, with the learning rate and the momentum of that
paper. Each rank keeps its own inner optimizer states.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.axes.initialise import local
from paralab.options.choices import OuterOptimizer
from paralab.processes.mesh import Mesh

LEARNING_RATE, MOMENTUM = 0.7, 0.9  # of the outer optimizer: Douillard et al. 2023, section 3.1


class LocalSteps:
    """Called after each update of the inner optimizer; meets the other data ranks every `every` calls."""

    def __init__(self, parameters: Sequence[Tensor], *, every: int, outer: OuterOptimizer, mesh: Mesh) -> None:
        """parameters: of any shape, whole or DTensors of axes other than the data axis."""
        self.every, self.group, self.ranks = every, mesh.group("dp"), mesh.size("dp")
        self.parameters = [local(p.detach()) for p in parameters]
        self.steps = 0
        self.before: list[Tensor] = []
        self.momentum: list[Tensor] = []
        if outer == "nesterov":
            self.before = [p.clone() for p in self.parameters]
            self.momentum = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def __call__(self) -> None:
        self.steps += 1
        if self.steps % self.every:
            return
        works = [dist.all_reduce(p, group=self.group, async_op=True) for p in self.parameters]
        for work in works:
            work.wait()
        torch._foreach_div_(self.parameters, self.ranks)
        if self.before:
            self._update()

    @property
    def states(self) -> Sequence[Tensor]:
        """What is kept from step to step, of the shapes of the parameters."""
        return [*self.before, *self.momentum]

    def _update(self) -> None:
        """Step from where ranks last met by the outer optimizer, and meet there."""
        moved = torch._foreach_sub(self.before, self.parameters)
        torch._foreach_mul_(self.momentum, MOMENTUM)
        torch._foreach_add_(self.momentum, moved)
        torch._foreach_add_(moved, self.momentum, alpha=MOMENTUM)
        torch._foreach_add_(self.before, moved, alpha=-LEARNING_RATE)
        torch._foreach_copy_(self.parameters, self.before)
