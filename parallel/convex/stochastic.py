"""Stochastic gradient descent, of one sample or of a batch a step, with the steps of Gower et al. 2019.

Theorem 3.2 of "SGD: General Analysis and Improved Rates": the step is constant as long as the distance from the start
matters, and then falls as 1 / k. K is the expected smoothness of a batch over the constant of strong convexity.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from paralab.convex.method import Iterate, Method, Optimum, Settings
from paralab.convex.softmax import SoftmaxRegression, batches


def iterate(problem: SoftmaxRegression, settings: Settings) -> Iterator[Iterate]:
    """Yield an iterate a pass over the data."""
    point, step = problem.start(), 0
    for epoch in count():
        yield Iterate(point, epochs=epoch, steps=step)
        for batch in batches(problem, size=settings.batch, seed=settings.seed, epoch=epoch):
            point = point - step_size(problem, settings.batch, step) * problem.batch_gradient(point, batch)
            step += 1


def step_size(problem: SoftmaxRegression, batch: int, step: int) -> float:
    """Return 1 / (2 L) up to step 4 K, and (2 k + 1) / ((k + 1)^2 mu) after it."""
    smoothness, mu = problem.expected_smoothness(batch), problem.strong_convexity
    if step <= 4 * math.ceil(smoothness / mu):
        return 1 / (2 * smoothness)
    return (2 * step + 1) / ((step + 1) ** 2 * mu)


def bound(problem: SoftmaxRegression, optimum: Optimum, settings: Settings, steps: int) -> float:
    """Return L / 2 times the expected squared distance (theorems 3.1 and 3.2, before and after step 4 K)."""
    smoothness, mu = problem.expected_smoothness(settings.batch), problem.strong_convexity
    variance = problem.gradient_variance(optimum.point, settings.batch)
    first, k = problem.squared_distance(problem.start(), optimum.point), math.ceil(smoothness / mu)
    if steps <= 4 * k:
        distance = (1 - mu / (2 * smoothness)) ** steps * first + variance / (smoothness * mu)
    else:
        distance = 8 * variance / (mu**2 * steps) + 16 * k**2 / (math.e**2 * steps**2) * first
    return problem.smoothness / 2 * distance


def _of_one(settings: Settings) -> Settings:
    return replace(settings, batch=1)


SGD = Method(
    "sgd",
    "1/k",
    lambda problem, settings: iterate(problem, _of_one(settings)),
    lambda problem, optimum, settings, steps: bound(problem, optimum, _of_one(settings), steps),
)
MINIBATCH = Method("minibatch", "1/k", iterate, bound)
