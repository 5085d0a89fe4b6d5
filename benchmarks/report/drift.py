"""How far two variants differ by themselves on a machine whose speed drifts.

The speed of a machine at one run is close to that at the run before: a lag-one correlation of 0.88 was measured on a
machine with other work to do. Two variants that are made one after the other then differ although nothing differs
between them, and tests that take runs as independent find a difference in a fifth of such pairs.

Here the null hypothesis is a machine that does nothing but drift: the logarithms of its step times are a stationary
Gaussian process, the correlation of two of its runs falls off exponentially with the time between them (an
Ornstein-Uhlenbeck process, AR(1) where runs are evenly spaced). The difference of two medians in units of the spread
within the variants has a distribution that depends on when the runs were made alone, which is simulated. Where runs
were made in turns, drift takes hold of both variants alike and nothing has to be added to a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

import numpy as np

from paralab.benchmarks.report.stats import RESAMPLES

CORRELATION = 0.9  # of runs at the usual distance in time: a little more than was measured
_LARGEST = 2_000_000  # simulated runs in all
_FAR = 1e6  # in usual distances: no correlation is left


@dataclass(frozen=True)
class Drift:
    """What drift alone can do."""

    p: float = 0.0  # how often medians would differ by as much
    factor: float = 1.0  # by which the ratio of medians is uncertain to either side, at 95%
    in_turns: bool = True


def judge(
    base: Sequence[float], other: Sequence[float], base_times: Sequence[str], other_times: Sequence[str]
) -> Drift:
    """Compare the difference of two variants with that of a machine which drifts.

    base, other: positive numbers, one a run. *_times: when each was started, ISO 8601.

    Runs of which it is not known when they were made are taken for two blocks far from each other.
    """
    logs = [np.log(np.asarray(values))[None] for values in (base, other)]
    places = _places(base_times, other_times)
    if _in_turns(*places):
        return Drift()
    null = _null(*places)
    spread = _spread(*logs)[0]
    apart = abs(float(np.median(logs[1]) - np.median(logs[0])))
    as_far = np.count_nonzero(null * spread >= apart)
    with np.errstate(over="ignore"):
        return Drift((as_far + 1) / (null.size + 1), float(np.exp(np.quantile(null, 0.95) * spread)), in_turns=False)


def _places(base: Sequence[str], other: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return when each run was made, in usual distances (the median of those between runs that follow each other)."""
    try:
        seconds = np.array([datetime.fromisoformat(time).timestamp() for time in (*base, *other)])
    except (ValueError, OverflowError):
        seconds = np.full(len(base) + len(other), np.nan)
    gaps = np.diff(np.sort(seconds))
    if not np.any(gaps > 0):
        return tuple(map(float, range(len(base)))), tuple(_FAR + place for place in range(len(other)))
    places = np.round((seconds - seconds.min()) / np.median(gaps[gaps > 0]), 3)
    return tuple(places[: len(base)].tolist()), tuple(places[len(base) :].tolist())


def _in_turns(base: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether the variants take turns at least as often as in a random order."""
    order = [side for _, side in sorted([*((place, 0) for place in base), *((place, 1) for place in other)])]
    return sum(a != b for a, b in pairwise(order)) >= min(len(base), len(other))


@lru_cache(maxsize=1024)
def _null(base: tuple[float, ...], other: tuple[float, ...]) -> np.ndarray:
    """Return how far medians are apart by drift alone, in units of the spread within, for many machines."""
    places = np.array([*base, *other])
    correlation = CORRELATION ** np.abs(places[:, None] - places[None, :])
    factor = np.linalg.cholesky(correlation + 1e-6 * np.eye(places.size))  # runs at one time are all but equal
    machines = np.random.default_rng(0).standard_normal((min(RESAMPLES, _LARGEST // places.size), places.size))
    logs = machines @ factor.T
    left, right = logs[:, : len(base)], logs[:, len(base) :]
    return np.abs(np.median(right, axis=1) - np.median(left, axis=1)) / _spread(left, right)


def _spread(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the pooled standard deviation within two variants; one row a machine."""
    squares = sum(((part - part.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for part in (left, right))
    return np.sqrt(squares / (left.shape[1] + right.shape[1] - 2))
