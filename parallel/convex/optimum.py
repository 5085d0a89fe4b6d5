"""The minimum of a problem, found to rounding: what suboptimality is measured from."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor

from paralab.convex import newton
from paralab.convex.denoising import Denoising, DenoisingDual
from paralab.convex.method import Optimum, Settings
from paralab.convex.softmax import SoftmaxRegression
from paralab.errors import ConfigError

MOST_NEWTON_STEPS, MOST_PROXIMAL_STEPS = 100, 200_000
_FAR, _APART, _FASTER = 20, 5, 10  # after so many steps of Newton, over so many: by what the gradient has to fall
_SMALL = 1e-10  # norm of the gradient (mapping), above which it is no minimum
_WANTED, _LOOKS = 1e-12, 50  # the norm that ends the search on the dual, and steps between looks at it


def of_softmax(problem: SoftmaxRegression, advance: Callable[[int], object] = lambda _: None) -> Optimum:
    """Return the minimum by Newton's method; collective over all ranks. Raises: ConfigError where there is none.

    advance: told how many more steps were done.
    """
    seen = problem.l2 > torch.finfo(torch.float64).eps * problem.smoothness  # beside rounding
    if not seen and (why := problem.grows_without_end()):
        raise ConfigError(
            f"there is no minimum{f' that fp64 could find with --l2 {problem.l2:g}' if problem.l2 else ''}: {why}, so "
            f"that weights grow without end: use --l2 above {problem.l2:g}"
        )
    norms: list[float] = []
    for last in islice(newton.iterate(problem, Settings()), MOST_NEWTON_STEPS):
        norms.append(problem.gradient_norm(last.point))
        advance(1)
        if len(norms) > _FAR and norms[-1] > norms[-_APART] / _FASTER:  # near a minimum the digits double at each step
            break
    value, norm = problem.value(last.point), norms[-1]
    if not problem.l2 and problem.separates(last.point):
        raise ConfigError(
            "there is no minimum: planes separate the classes, and weights grow without end: use --l2 above 0"
        )
    if norm > _SMALL:
        raise ConfigError(
            f"no minimum was found, the gradient's norm is {norm:.1e} after {last.steps} steps of Newton's method: use "
            f"--l2 above {problem.l2:g}"
        )
    return Optimum(last.point, value)


def of_dual(problem: DenoisingDual, advance: Callable[[int], object] = lambda _: None) -> Optimum:
    """Return the minimum of the dual; collective over all ranks. Raises: ConfigError where it takes too many steps.

    By FISTA that starts anew in a row where it overshoots (O'Donoghue and Candes 2015, gradient scheme).
    advance: told how many more steps were done.
    """
    point = ahead = problem.start()
    t = torch.ones((), dtype=point.dtype)
    for step in range(MOST_PROXIMAL_STEPS):
        if step % _LOOKS == 0:
            advance(_LOOKS if step else 0)
            if (point - problem.step(point)).abs().max() <= _WANTED * problem.weight:
                break
        last, point = point, problem.step(ahead)
        overshoots = _over_rows((ahead - point) * (point - last)) > 0
        t_last, t = t, torch.where(overshoots, 1.0, (1 + (1 + 4 * t**2).sqrt()) / 2)
        ahead = point + torch.where(overshoots, 0.0, (t_last - 1) / t) * (point - last)
    if (norm := problem.gradient_norm(point)) > _SMALL:
        raise ConfigError(
            f"no minimum was found, the gradient's norm is {norm:.1e} after {MOST_PROXIMAL_STEPS:,} steps: use a "
            f"weight of the penalty below {problem.weight:g}"
        )
    return Optimum(point, problem.value(point))


def _over_rows(p: Tensor) -> Tensor:
    """Return the sum over each row (1, rows, 1, ...) of p (dims, rows, ...)."""
    return p.sum(dim=[dim for dim in range(p.dim()) if dim != 1], keepdim=True)


def of_primal(problem: Denoising, dual: Optimum) -> Optimum:
    """Return the minimum that belongs to that of the dual; collective over all ranks."""
    point = problem.dual().denoised(dual.point)
    return Optimum(point, problem.value(point))
