"""Fits the constants of the planner to published measurements, every table weighted alike.

A constant stays near what is known of it before (its prior, with a spread) as far as the tables do not say otherwise,
so that what only one table shows is not lost when that table is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from paralab.axes.case import Values
from paralab.axes.costs import GIB, Constants, Plan
from paralab.benchmarks.planner.cases import Published
from paralab.planning import memory, steptime
from paralab.planning.constants import Constant, described

NOISE = 0.06  # of a measurement, relative: larger differences count linearly, not squared
ASSUMED_NOISE = 0.12  # where a source does not state all of a configuration, and a part of it was filled in
STEPS, TRIES, SLOPE = 40, 8, 1e-5  # of a fit: rounds, smaller steps in a round, difference for a slope
MEMORY = "mem_"  # what the names of constants of memory begin with


@dataclass(frozen=True)
class Target:
    """What is fitted. predict: its values (cases,). measured: (cases,). held: how strongly priors hold.

    limit: what values are known not to exceed (cases,), NaN where nothing is known; None where nothing ever is.
    """

    name: str
    predict: Callable[[Plan], Values]
    measured: Callable[[Published], np.ndarray]
    constants: Mapping[str, Constant]
    held: float
    limit: Callable[[Published], np.ndarray] | None = None

    def informative(self, cases: Published) -> np.ndarray:
        """Return which cases say something of the constants, booleans (cases,): those measured, and those limited."""
        return self.known(cases) if self.limit is None else self.known(cases) | np.isfinite(self.limit(cases))

    def known(self, cases: Published) -> np.ndarray:
        """Return which cases were measured, booleans (cases,)."""
        return np.isfinite(self.measured(cases))


def _described(of_memory: bool) -> Mapping[str, Constant]:
    return {name: constant for name, constant in described().items() if name.startswith(MEMORY) == of_memory}


def targets() -> tuple[Target, Target]:
    """Return step time and memory."""
    time, space = _described(False), _described(True)
    return (
        Target("step_time", steptime.step_time_s, lambda cases: cases.step_time_s, time, 0.06),
        Target(
            "memory", lambda plan: memory.peak_bytes(plan) / GIB, lambda cases: cases.memory_gib, space, 0.06, _capacity
        ),
    )


def _capacity(cases: Published) -> np.ndarray:
    """Return the memory of the device in GiB where a training is known to have fitted it, else NaN (cases,)."""
    return np.where(cases.fits == "true", cases.machine.memory_bytes / GIB, np.nan)


def weights(table: np.ndarray) -> np.ndarray:
    """Return the weight of each case (cases,): those of a table add up to 1."""
    return np.array([1 / np.sum(table == name) for name in table])


def fit(target: Target, cases: Published) -> dict[str, float]:
    """Return constants that suit cases, all of them informative, by name."""
    names = list(target.constants)
    constants = [target.constants[name] for name in names]
    prior = np.log([constant.prior for constant in constants])
    low, high = (np.log([getattr(constant, end) or 1e-6 for constant in constants]) for end in ("low", "high"))
    spread = np.array([constant.spread for constant in constants])
    noise = np.where(cases.quality == "assumed", ASSUMED_NOISE, NOISE)
    weight, measured = np.sqrt(weights(cases.table)), target.measured(cases)

    only_limited = ~np.isfinite(measured)
    if target.limit is not None:
        measured = np.where(only_limited, target.limit(cases), measured)
    measured = np.log(measured)

    def predicted(logs: np.ndarray) -> np.ndarray:
        k = Constants(dict(zip(names, np.exp(logs), strict=True)))
        return np.log(target.predict(Plan(cases.case, cases.machine, k)))

    felt = _felt(predicted, prior)

    def residuals(some: np.ndarray) -> np.ndarray:
        logs = prior.copy()
        logs[felt] = some
        errors = (predicted(logs) - measured) / noise
        errors = np.where(only_limited, np.maximum(errors, 0), errors)
        linear = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([weight * linear, (some - prior[felt]) / spread[felt] * target.held**0.5])

    logs = prior.copy()
    logs[felt] = least_squares(residuals, prior[felt], low=low[felt], high=high[felt])
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(logs), strict=True)}


def least_squares(
    residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return the arguments (n,) within bounds whose residuals (m,) have the smallest sum of squares nearby.

    Levenberg-Marquardt (Nocedal and Wright 2006, section 10.3), each step cut at the bounds.
    """
    x, damping = np.clip(start, low, high), 1e-2
    at = residuals(x)
    for _ in range(STEPS):
        slopes = np.stack([(residuals(x + SLOPE * one) - at) / SLOPE for one in np.eye(len(x))], axis=1)
        # what lies at a bound and would leave it stays there
        push = slopes.T @ at
        free = ~(((x <= low) & (push > 0)) | ((x >= high) & (push < 0)))
        normal = slopes[:, free].T @ slopes[:, free]
        before = at @ at
        for _ in range(TRIES):
            step = np.zeros(len(x))
            step[free] = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -push[free])
            there = np.clip(x + step, low, high)
            found = residuals(there)
            if found @ found < before:
                x, at, damping = there, found, damping / 5
                break
            damping *= 4
        if before - at @ at < 1e-7 * before:
            break
    return x


def _felt(predicted: Callable[[np.ndarray], np.ndarray], prior: np.ndarray) -> np.ndarray:
    """Return which constants change a prediction at all, booleans (constants,)."""
    before = predicted(prior)
    return np.array([np.any(predicted(prior + 0.05 * one) != before) for one in np.eye(len(prior))])


def left_out(target: Target, cases: Published) -> np.ndarray:
    """Return predictions (cases,) of each table with constants that were fitted on all others."""
    found = np.full(len(cases.table), np.nan)
    for name in sorted(set(cases.table[target.known(cases)].tolist())):
        out = cases.table == name
        test = cases.part(out)
        k = Constants(fit(target, cases.part(~out)))
        found[out] = target.predict(Plan(test.case, test.machine, k))
    return found
