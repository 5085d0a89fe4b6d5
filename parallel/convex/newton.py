"""Newton-Raphson with the exact Hessian and backtracking (Boyd and Vandenberghe 2004, algorithm 9.5)."""

from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from paralab.convex.method import Iterate, Method, Settings
from paralab.convex.softmax import SoftmaxRegression

_DECREASE, _SHRINK = 1e-4, 0.5  # of the line search: share of the predicted decrease, and factor of the step
_FIRST_DAMPING, _MORE = 1e-10, 10  # of a singular Hessian: share of its mean diagonal, and factor where too little
_ENOUGH = 1e-12  # norm of the gradient, from which on rounding decides


def iterate(problem: SoftmaxRegression, settings: Settings) -> Iterator[Iterate]:
    """Yield an iterate a step, until the gradient is zero but for rounding. The line search counts no epochs."""
    point, note = problem.start(), ""
    value, gradient = problem.value_and_gradient(point)
    for step in count():
        yield Iterate(point, epochs=step, steps=step, note=note)
        if gradient.norm() <= _ENOUGH:
            return
        direction, damping = solve(problem.hessian(point), -gradient.flatten())
        note = f"Hessian is singular: damped by {damping:.1e}" if damping else ""
        found = _backtrack(problem, point, direction.view_as(point), value, gradient)
        if found is None:
            return
        point, value, gradient = found


def solve(hessian: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """Solve for x (size,) by Cholesky, and return what was added to the diagonal of a singular Hessian, or 0.

    hessian: (size, size) positive semi-definite. right: (size,). Every rank solves the same system.
    """
    damping, mean = 0.0, hessian.diagonal().mean().item()
    while (factor := _factor(hessian)) is None:
        more = _FIRST_DAMPING * mean if not damping else (_MORE - 1) * damping
        hessian.diagonal().add_(more)
        damping += more
    return torch.cholesky_solve(right[:, None], factor)[:, 0], damping


def _factor(hessian: Tensor) -> Tensor | None:
    """Return the Cholesky factor; None where a pivot is zero but for rounding (Higham 2002, chapter 10)."""
    factor, failed = torch.linalg.cholesky_ex(hessian)
    pivots = factor.diagonal().square()
    rounding = torch.finfo(hessian.dtype).eps * len(hessian) * hessian.diagonal().max()
    return None if failed.item() or pivots.min() <= rounding else factor


def _backtrack(
    problem: SoftmaxRegression, point: Tensor, direction: Tensor, value: float, gradient: Tensor
) -> tuple[Tensor, float, Tensor] | None:
    """Return the point, value and gradient of the longest step that decreases enough; None where rounding decides."""
    slope, length = (gradient * direction).sum().item(), 1.0
    rounding = 10 * torch.finfo(point.dtype).eps * max(1.0, abs(value))
    while -slope * length > torch.finfo(point.dtype).eps ** 2:
        there = point + length * direction
        new, new_gradient = problem.value_and_gradient(there)
        if new <= value + _DECREASE * length * slope + rounding:
            return (there, new, new_gradient) if new_gradient.norm() < gradient.norm() or new < value else None
        length *= _SHRINK
    return None


NEWTON = Method("newton", "quadratic", iterate, bound=None)
