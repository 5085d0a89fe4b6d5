"""Gradient descent with the step 1 / L."""

from collections.abc import Iterator
from itertools import count

from paralab.convex.method import Iterate, Method, Optimum, Settings
from paralab.convex.softmax import SoftmaxRegression


def iterate(problem: SoftmaxRegression, settings: Settings) -> Iterator[Iterate]:
    """Yield an iterate a pass over the data."""
    point = problem.start()
    for step in count():
        yield Iterate(point, epochs=step, steps=step)
        point = point - problem.value_and_gradient(point)[1] / problem.smoothness


def bound(problem: SoftmaxRegression, optimum: Optimum, settings: Settings, steps: int) -> float:
    """Return (1 - mu / L)^k of the first suboptimality (Karimi, Nutini and Schmidt 2016, theorem 1).

    Or L |x_0 - x*|^2 / (2 k) where that is less (Beck and Teboulle 2009, theorem 3.1, without a term with kinks).
    """
    start = problem.start()
    linear = (1 - problem.strong_convexity / problem.smoothness) ** steps * (problem.value(start) - optimum.value)
    distance = problem.squared_distance(start, optimum.point)
    return min(linear, problem.smoothness * distance / (2 * steps)) if steps else linear


GD = Method("gd", "linear", iterate, bound)
