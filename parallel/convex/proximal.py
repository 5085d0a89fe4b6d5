"""The subgradient method on denoising; proximal gradient (ISTA) and its accelerated form (FISTA) on its dual."""

from collections.abc import Iterator
from itertools import count
from math import sqrt

from paralab.convex.denoising import Denoising, DenoisingDual
from paralab.convex.method import Iterate, Method, Optimum, Settings


def subgradient(problem: Denoising, settings: Settings) -> Iterator[Iterate]:
    """Yield means of the points so far, weighted by their number, after steps of 2 / (k + 1).

    Lacoste-Julien, Schmidt and Bach 2012, "A simpler approach to obtaining an O(1/t) convergence rate".
    """
    point = mean = problem.start()
    yield Iterate(mean, epochs=0, steps=0)
    for step in count(1):
        mean = mean + 2 / (step + 1) * (point - mean)
        yield Iterate(mean, epochs=step, steps=step)
        point = point - 2 / (step + 1) * problem.subgradient(point)


def subgradient_bound(problem: Denoising, optimum: Optimum, settings: Settings, steps: int) -> float | None:
    """Return 2 B^2 / (k + 1) of subgradients of norm B or less, with mu = 1 (the same, for weighted means)."""
    return 2 * problem.most_squared_subgradient / (steps + 1) if steps else None


def ista(problem: DenoisingDual, settings: Settings) -> Iterator[Iterate]:
    """Yield an iterate a step (Beck and Teboulle 2009, section 3)."""
    point = problem.start()
    for step in count():
        yield Iterate(point, epochs=step, steps=step)
        point = problem.step(point)


def ista_bound(problem: DenoisingDual, optimum: Optimum, settings: Settings, steps: int) -> float | None:
    """Return L |p_0 - p*|^2 / (2 k) (Beck and Teboulle 2009, theorem 3.1)."""
    return problem.smoothness * _distance(problem, optimum) / (2 * steps) if steps else None


def fista(problem: DenoisingDual, settings: Settings) -> Iterator[Iterate]:
    """Yield an iterate a step (Beck and Teboulle 2009, section 4, with constant step size)."""
    point = ahead = problem.start()
    t = 1.0
    for step in count():
        yield Iterate(point, epochs=step, steps=step)
        last, point = point, problem.step(ahead)
        t_last, t = t, (1 + sqrt(1 + 4 * t * t)) / 2
        ahead = point + (t_last - 1) / t * (point - last)


def fista_bound(problem: DenoisingDual, optimum: Optimum, settings: Settings, steps: int) -> float | None:
    """Return 2 L |p_0 - p*|^2 / (k + 1)^2 (Beck and Teboulle 2009, theorem 4.4)."""
    return 2 * problem.smoothness * _distance(problem, optimum) / (steps + 1) ** 2 if steps else None


def _distance(problem: DenoisingDual, optimum: Optimum) -> float:
    return problem.squared_distance(problem.start(), optimum.point)


SUBGRADIENT = Method("subgradient", "1/k", subgradient, subgradient_bound)
ISTA = Method("ista", "1/k", ista, ista_bound)
FISTA = Method("fista", "1/k^2", fista, fista_bound)
