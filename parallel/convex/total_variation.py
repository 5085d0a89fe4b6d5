"""Denoising by total variation, and its dual, as functions to minimise (Rudin, Osher and Fatemi 1992; Chambolle 2004).

    P(x) = |x - y|^2 / 2 + tv |D x|_1          D(p) = |D^T p - y|^2 / 2  where every |p| <= tv

for each row y, a signal or an image; D x are the differences of neighbours in every dim (anisotropic for images). The
solution is x = y - D^T p, and |x - x*|^2 / 2 is at most the suboptimality of either. Everything is fp64. Values are
means over rows, which do not depend on each other: ranks divide them, and reduce only the values that are looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from paralab.axes.optimizer import share_of_rows
from paralab.models.spec import keep


def differences(x: Tensor) -> Tensor:
    """Return D x (dims, rows, ...) of x (rows, ...): next minus this in each dim, and 0 at its end."""
    return torch.stack([torch.diff(x, dim=dim, append=x.narrow(dim, -1, 1)) for dim in range(1, x.dim())])


def adjoint(p: Tensor) -> Tensor:
    """Return D^T p (rows, ...) of p (dims, rows, ...)."""
    total = torch.zeros_like(p[0])
    for dim, along in enumerate(p, start=1):
        inner = along.narrow(dim, 0, along.shape[dim] - 1)
        total.narrow(dim, 1, inner.shape[dim]).add_(inner)
        total.narrow(dim, 0, inner.shape[dim]).sub_(inner)
    return total


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that ranks divide. every: all noisy ones (rows, ...). reduce: sums a tensor over the ranks."""

    every: Tensor
    tv: float
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

    @property
    def operator_norm(self) -> float:
        """The largest squared norm of D: 4 for each dim (Chambolle 2004, theorem 3.1)."""
        return 4.0 * (self.every.dim() - 1)


class TotalVariation(_Rows):
    """P of x (rows, ...). It is strongly convex, with mu = 1, and has kinks."""

    def start(self) -> Tensor:
        """Return y (rows, ...)."""
        return self.noisy

    def part_of(self, point: Tensor) -> Tensor:
        """Return the rows of this rank, of all (rows, ...)."""
        return point[self.mine]

    def value(self, point: Tensor) -> float:
        """Return P at x (rows, ...)."""
        return self.mean((point - self.noisy).square()) / 2 + self.tv * self.mean(differences(point).abs())

    def gradient_norm(self, point: Tensor) -> float:
        """Return the norm of a subgradient at x (rows, ...), which does not vanish at the minimum."""
        return self.mean(self.subgradient(point).square()) ** 0.5

    def subgradient(self, point: Tensor) -> Tensor:
        """Return a subgradient (rows, ...) of the function of each row."""
        return point - self.noisy + self.tv * adjoint(differences(point).sign())

    @property
    def most_squared_subgradient(self) -> float:
        """A bound on |g|^2 along steps of size t <= 1 from y.

        Such a step makes e = x - y into (1 - t) e - t tv D^T s with signs s, so that |e| stays below tv |D| |s|, and a
        subgradient below twice that.
        """
        numbers = (self.every.dim() - 1) * self.every[0].numel()
        return 4 * self.tv**2 * self.operator_norm * numbers

    def dual(self) -> "TotalVariationDual":
        return TotalVariationDual(self.every, self.tv, self.rank, self.ranks, self.reduce)


class TotalVariationDual(_Rows):
    """D of p (dims, rows, ...): smooth, within a box."""

    def start(self) -> Tensor:
        """Return zeros (dims, rows, ...), to which y belongs."""
        return torch.zeros_like(differences(self.noisy))

    def part_of(self, point: Tensor) -> Tensor:
        """Return the rows of this rank, of all (dims, rows, ...)."""
        return point[:, self.mine]

    def value(self, point: Tensor) -> float:
        """Return D at p (dims, rows, ...)."""
        return self.mean(self.denoised(point).square()) / 2

    def gradient_norm(self, point: Tensor) -> float:
        """Return the norm of the gradient mapping L (p - a step from p) at p (dims, rows, ...) (Beck 2017, 10.5)."""
        return self.mean((self.smoothness * (point - self.step(point))).square()) ** 0.5

    def denoised(self, point: Tensor) -> Tensor:
        """Return the x (rows, ...) that belongs to p."""
        return self.noisy - adjoint(point)

    def step(self, point: Tensor) -> Tensor:
        """Return the point (dims, rows, ...) of a gradient step of 1 / L and the projection onto the box after it."""
        gradient = -differences(self.denoised(point))
        return (point - gradient / self.smoothness).clamp(-self.tv, self.tv)

    @property
    def smoothness(self) -> float:
        """The constant L of the gradient."""
        return self.operator_norm
