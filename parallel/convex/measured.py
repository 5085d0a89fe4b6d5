"""Run a method and measure it: suboptimality, gradient norm, time and bytes sent after each iterate."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paralab.convex.method import Method, Optimum, Rate, Settings
from paralab.convex.reduction import CountedReduction

ROUNDING = 1e-13  # suboptimality over the size of the minimum, below which it is rounding
_ROUNDED_NORM = 1e-11  # norm of a gradient that may be rounding


@dataclass(frozen=True)
class Line:
    """What is known after an iterate.

    epochs: passes over the data. steps: of the method. bound: what a theorem says that the suboptimality is at most.
    time_s, sent_bytes: of the method alone, on this rank; the values in this line were computed apart.
    """

    method: str
    epochs: float
    steps: int
    objective: float
    suboptimality: float
    gradient_norm: float
    bound: float | None
    time_s: float
    sent_bytes: int
    note: str = ""


def run(
    method: Method,
    problem: Any,
    *,
    optimum: Optimum,
    settings: Settings,
    epochs: float,
    sent: CountedReduction,
    advance: Callable[[int], object] = lambda _: None,
) -> list[Line]:
    """Run a method for so many passes over the data. Collective over all ranks.

    sent: what the problem reduces with. advance: told how many more passes were done.
    """
    lines: list[Line] = []
    time_s = sent_bytes = 0.0
    iterates = method.iterate(problem, settings)
    while not lines or lines[-1].epochs < epochs:
        began, sent_before = time.perf_counter(), sent.sent_bytes
        found = next(iterates, None)
        if found is None:
            break
        time_s += time.perf_counter() - began
        sent_bytes += float(sent.sent_bytes - sent_before)
        advance(int(found.epochs) - (int(lines[-1].epochs) if lines else 0))
        objective = problem.value(found.point)
        lines.append(
            Line(
                method.name,
                found.epochs,
                found.steps,
                objective,
                objective - optimum.value,
                problem.gradient_norm(found.point),
                None if method.bound is None else method.bound(problem, optimum, settings, found.steps),
                time_s,
                round(sent_bytes),
                found.note,
            )
        )
    return lines


def difference_from_one_process(method: Method, problem: Any, *, settings: Settings, iterates: int) -> float:
    """Return how far the iterates of several ranks are from those of one process, in what the steps moved them by.

    Every rank computes both; each looks at what it holds. The largest difference of a number over the largest movement.
    """
    differences = [0.0]
    both = zip(method.iterate(problem, settings), method.iterate(problem.alone(), settings), strict=True)
    first: Tensor | None = None
    for _, (shared, alone) in zip(range(iterates + 1), both, strict=False):
        want = problem.part_of(alone.point)
        first = want if first is None else first
        if moved := (want - first).abs().max().item():
            differences.append((shared.point - want).abs().max().item() / moved)
    return max(differences)


def measured_rate(method: Method, lines: Sequence[Line], *, minimum: float) -> float | None:
    """Return the rate that a run had, in the terms of `rate_of`; of quadratic convergence the order of the gradient."""
    if method.rate == "quadratic":
        return _order([line.gradient_norm for line in lines])
    kept = _above_rounding(lines, minimum)
    return rate_of(method.rate, [line.epochs for line in kept], [line.suboptimality for line in kept])


def rate_in_theory(method: Method, lines: Sequence[Line], *, minimum: float) -> float | None:
    """Return the rate of the bounds of the same lines."""
    if method.rate == "quadratic":
        return 2.0
    kept = _above_rounding(lines, minimum)
    return rate_of(method.rate, [line.epochs for line in kept], [line.bound or math.nan for line in kept])


def _above_rounding(lines: Sequence[Line], minimum: float) -> list[Line]:
    return [line for line in lines if line.steps and line.suboptimality > ROUNDING * max(1.0, abs(minimum))]


def rate_of(rate: Rate, epochs: Sequence[float], values: Sequence[float]) -> float | None:
    """Return how the second half of values falls: by which factor an epoch (linear), or as which power of the epochs.

    None for fewer than three values.
    """
    if len(values) < 3:
        return None
    middle = len(values) // 2
    ratio = math.log(values[-1] / values[middle])
    if rate == "linear":
        return math.exp(ratio / (epochs[-1] - epochs[middle]))
    return ratio / math.log(epochs[-1] / epochs[middle])


def _order(norms: Sequence[float]) -> float | None:
    """Return q of |g_k| = |g_{k-1}|^q but for a constant, from the last three norms above rounding that fall."""
    above = [norm for norm in norms if norm > _ROUNDED_NORM]
    orders = [
        math.log(c / b) / math.log(b / a) for a, b, c in zip(above, above[1:], above[2:], strict=False) if c < b < a
    ]
    return orders[-1] if orders else None


def epochs_until(lines: Sequence[Line], gradient_norm: float) -> float | None:
    """Return the epochs after which the gradient norm is below a number; None where it never is."""
    return next((line.epochs for line in lines if line.gradient_norm < gradient_norm), None)
