"""Stochastic variance-reduced gradients (Johnson and Zhang 2013) in the form of Sebbouh et al. 2019 (Free-SVRG).

"Towards closing the gap between the theory and practice of SVRG": an inner loop starts where the last one ended, and
its anchor is a weighted mean of the last one's points. Their theorem holds for every length of the loop, which here is
a pass over the data; one iterate takes three passes: the anchor's gradient, and two gradients for each sample.
"""

from collections.abc import Iterator
from itertools import count

from paralab.convex.method import Iterate, Method, Optimum, Settings
from paralab.convex.softmax import SoftmaxRegression, batches


def iterate(problem: SoftmaxRegression, settings: Settings) -> Iterator[Iterate]:
    """Yield an iterate after each inner loop."""
    point = anchor = problem.start()
    steps, alpha = loop_length(problem, settings), step_size(problem, settings)
    keeps = 1 - alpha * problem.strong_convexity
    for loop in count():
        yield Iterate(point, epochs=loop * (1 + 2 * steps * settings.batch / problem.n_samples), steps=loop * steps)
        full, mean, weights = problem.value_and_gradient(anchor)[1], problem.start(), 0.0
        for batch in batches(problem, size=settings.batch, seed=settings.seed, epoch=loop):
            mean, weights = keeps * mean + point, keeps * weights + 1  # the last points weigh most
            point = point - alpha * (full + problem.batch_difference(point, anchor, batch))
        anchor = mean / weights


def loop_length(problem: SoftmaxRegression, settings: Settings) -> int:
    """Return the steps of an inner loop: a pass over the data."""
    return -(-problem.n_samples // settings.batch)


def step_size(problem: SoftmaxRegression, settings: Settings) -> float:
    """Return 1 / (2 (L + 2 rho)) of the expected smoothness L and residual rho of a batch, as their theorem has it."""
    return 1 / (2 * (problem.expected_smoothness(settings.batch) + 2 * _residual(problem, settings.batch)))


def _residual(problem: SoftmaxRegression, batch: int) -> float:
    """Return the expected residual of batches without replacement (Sebbouh et al. 2019)."""
    n = problem.n_samples
    return (n - batch) / (batch * (n - 1)) * problem.sample_smoothness


def bound(problem: SoftmaxRegression, optimum: Optimum, settings: Settings, steps: int) -> float:
    """Return L / 2 times max((1 - alpha mu)^m, 1 / 2)^s of the Lyapunov function at the start, m steps a loop."""
    m, alpha = loop_length(problem, settings), step_size(problem, settings)
    keeps = 1 - alpha * problem.strong_convexity
    weights = (1 - keeps**m) / (1 - keeps)
    first = problem.squared_distance(problem.start(), optimum.point)
    rest = problem.value(problem.start()) - optimum.value
    lyapunov = first + 8 * alpha**2 * _residual(problem, settings.batch) * weights * rest
    return problem.smoothness / 2 * max(keeps**m, 0.5) ** (steps // m) * lyapunov


SVRG = Method("svrg", "linear", iterate, bound)
