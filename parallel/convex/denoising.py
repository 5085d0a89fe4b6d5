"""Denoising as a function to minimise, and its dual (Chambolle 2004, for total variation).

    P(x) = |x - y|^2 / 2 + weight |W x|_1          D(p) = |W^T p - y|^2 / 2  where every |p| <= weight

for each row y, a signal or an image; W is one of `penalties.py`. The solution is x = y - W^T p, and |x - x*|^2 / 2 is
at most the suboptimality of either. Everything is fp64. Values are means over rows, which do not depend on each other:
ranks divide them, and reduce only the values that are looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from paralab.axes.optimizer import share_of_rows
from paralab.convex.penalties import Penalty
from paralab.models.spec import keep


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that ranks divide. every: all noisy ones (rows, ...). reduce: sums a tensor over the ranks."""

    every: Tensor
    weight: float
    penalty: Penalty
    rank: int = 0
    ranks: int = 1
    reduce: Callable[[Tensor], Tensor] = keep

    @property
    def mine(self) -> slice:
        """The rows of this rank."""
        return share_of_rows(len(self.every), rank=self.rank, ranks=self.ranks)

    @cached_property
    def noisy(self) -> Tensor:
        """The noisy signals or images (rows, ...) of this rank."""
        return self.every[self.mine]

    def alone(self) -> Self:
        return replace(self, rank=0, ranks=1, reduce=keep)

    def squared_distance(self, point: Tensor, other: Tensor) -> float:
        """Return the squared norm of the difference of two points (..., rows, ...), a mean over rows."""
        return self.mean((point - other).square())

    def mean(self, mine: Tensor) -> float:
        """Return the sum of a tensor of any shape over all ranks, over the number of all rows."""
        return self.reduce(mine.sum()).item() / len(self.every)


class Denoising(_Rows):
    """P of x (rows, ...). It is strongly convex, with mu = 1, and has kinks."""

    def start(self) -> Tensor:
        """Return y (rows, ...)."""
        return self.noisy

    def part_of(self, point: Tensor) -> Tensor:
        """Return the rows of this rank, of all (rows, ...)."""
        return point[self.mine]

    def value(self, point: Tensor) -> float:
        """Return P at x (rows, ...)."""
        return self.mean((point - self.noisy).square()) / 2 + self.weight * self.mean(self.penalty.forward(point).abs())

    def gradient_norm(self, point: Tensor) -> float:
        """Return the norm of a subgradient at x (rows, ...), which does not vanish at the minimum."""
        return self.mean(self.subgradient(point).square()) ** 0.5

    def subgradient(self, point: Tensor) -> Tensor:
        """Return a subgradient (rows, ...) of the function of each row."""
        return point - self.noisy + self.weight * self.penalty.adjoint(self.penalty.forward(point).sign())

    @property
    def most_squared_subgradient(self) -> float:
        """A bound on |g|^2 along steps of size t <= 1 from y.

        Such a step makes e = x - y into (1 - t) e - t weight W^T s with signs s, so that |e| stays below weight |W|
        |s|, and a subgradient below twice that.
        """
        numbers = self.penalty.forward(self.every[:1]).numel()
        return 4 * self.weight**2 * self.penalty.squared_norm * numbers

    def dual(self) -> "DenoisingDual":
        return DenoisingDual(self.every, self.weight, self.penalty, self.rank, self.ranks, self.reduce)


class DenoisingDual(_Rows):
    """D of p (parts, rows, ...): smooth, within a box."""

    def start(self) -> Tensor:
        """Return zeros (parts, rows, ...), to which y belongs."""
        return torch.zeros_like(self.penalty.forward(self.noisy))

    def part_of(self, point: Tensor) -> Tensor:
        """Return the rows of this rank, of all (parts, rows, ...)."""
        return point[:, self.mine]

    def value(self, point: Tensor) -> float:
        """Return D at p (parts, rows, ...)."""
        return self.mean(self.denoised(point).square()) / 2

    def gradient_norm(self, point: Tensor) -> float:
        """Return the norm of the gradient mapping L (p - a step from p) at p (parts, rows, ...) (Beck 2017)."""
        return self.mean((self.smoothness * (point - self.step(point))).square()) ** 0.5

    def denoised(self, point: Tensor) -> Tensor:
        """Return the x (rows, ...) that belongs to p."""
        return self.noisy - self.penalty.adjoint(point)

    def step(self, point: Tensor) -> Tensor:
        """Return the point (parts, rows, ...) of a gradient step of 1 / L and the projection onto the box after it."""
        gradient = -self.penalty.forward(self.denoised(point))
        return (point - gradient / self.smoothness).clamp(-self.weight, self.weight)

    @property
    def smoothness(self) -> float:
        """The constant L of the gradient."""
        return self.penalty.squared_norm
