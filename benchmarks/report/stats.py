"""Statistics over a few runs. Each run gives one number, because the steps of a run are not independent.

(Not named `statistics`: `python benchmarks/run.py` puts this folder before the standard library.)
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from math import comb, erfc, isfinite, sqrt

import numpy as np

EXACT_LIMIT = 40  # runs of both variants together; above it the normal approximation is good and the exact count slow
RESAMPLES = 10_000
FEWEST_RUNS = 6  # the least and the largest of fewer hold the median in less than 95 of 100 cases: 1 - 2 / 2^n
RANGE = "range"


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two in the middle. Raises: ValueError when there are none."""
    if not values:
        raise ValueError("the median of no values")
    return float(np.median(values))


def ratio_interval(
    base: Sequence[float], other: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of median(other) / median(base).

    Percentiles over resampled runs (Efron and Tibshirani 1993, chapter 13). With five runs a variant it is a little
    too narrow, which is why a verdict also needs `mann_whitney`. The same input gives the same interval.
    """
    rng = np.random.default_rng(seed)
    medians = [_resampled(np.asarray(times), rng) for times in (base, other)]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians[1] / medians[0], [tail, 100 - tail])
    return float(low), float(high)


def _resampled(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the medians of resampled runs, an array (RESAMPLES,); (1,) of a single run, which has no other."""
    return times if len(times) == 1 else np.median(rng.choice(times, (RESAMPLES, len(times))), axis=1)


def median_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the bootstrap interval of the median."""
    return _median_interval(tuple(values), confidence, seed)


@lru_cache(4096)  # a report asks for those of a way in its table and in several charts
def _median_interval(values: tuple[float, ...], confidence: float, seed: int) -> tuple[float, float]:
    return ratio_interval([1.0], values, confidence=confidence, seed=seed)


def spread(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of the median; of too few runs for one, their range. None where there is one or none."""
    if len(values) < 2:
        return None
    return median_interval(values) if len(values) >= FEWEST_RUNS else (min(values), max(values))


def spread_name(values: Sequence[object]) -> str:
    """Return what `spread` of these values is called."""
    return "95% interval" if len(values) >= FEWEST_RUNS else RANGE


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p value of the Mann-Whitney U test (1947): do both variants draw from one distribution?

    Exact, given the ties, up to `EXACT_LIMIT` runs in all; beyond, the normal approximation with the corrections for
    ties and continuity (Lehmann 1975, section 1.4). Raises: ValueError for an empty variant or an infinite value.
    """
    if not a or not b or not all(map(isfinite, (*a, *b))):
        raise ValueError("Mann-Whitney needs finite values in both variants")
    ranks = _doubled_ranks([*a, *b])
    observed = abs(2 * sum(ranks[: len(a)]) - 2 * len(a) * (len(ranks) + 1))  # from the mean, times four
    if len(ranks) <= EXACT_LIMIT:
        return _exact(ranks, len(a), observed)
    return _normal(ranks, len(a), observed / 4)


def smallest_p(n: int, m: int) -> float:
    """Return the least two-sided p value that n and m runs can give: what they say when no run overlaps."""
    return min(1.0, 2 / comb(n + m, n))


def fisher(failed: int, runs: int, base_failed: int, base_runs: int) -> float:
    """Return the one-sided p value of Fisher's exact test (1922): as many failures among `runs`, or more, by chance."""
    all_failed, total = failed + base_failed, runs + base_runs
    ways = sum(comb(runs, k) * comb(base_runs, all_failed - k) for k in range(failed, min(runs, all_failed) + 1))
    return ways / comb(total, all_failed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for the number of tests (Holm 1979): compare them with the usual level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = highest
    return corrected


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Return twice the rank of each value, counted from 1; equal values share the mean of theirs."""
    ranks: dict[float, int] = {}
    below = 0
    for value, same in groupby(sorted(values)):
        count = len(list(same))
        ranks[value] = 2 * below + count + 1
        below += count
    return [ranks[value] for value in values]


def _exact(ranks: Sequence[int], size: int, observed: int) -> float:
    """Count the choices of `size` runs whose rank sum is at least as far from its mean as the observed one."""
    mean = size * (len(ranks) + 1)
    extreme = sum(ways for total, ways in _rank_sums(tuple(sorted(ranks)), size) if 2 * abs(total - mean) >= observed)
    return extreme / comb(len(ranks), size)


@lru_cache(64)  # without ties, comparisons of as many runs have the same ranks
def _rank_sums(ranks: tuple[int, ...], size: int) -> Sequence[tuple[int, int]]:
    """Return each sum of `size` of the ranks, and how many choices have it."""
    sums: list[Counter[int]] = [Counter({0: 1}), *(Counter() for _ in range(size))]  # by number of runs chosen
    for rank in ranks:
        for chosen in range(size, 0, -1):
            for total, ways in sums[chosen - 1].items():
                sums[chosen][total + rank] += ways
    return tuple(sums[size].items())


def _normal(ranks: Sequence[int], size: int, distance: float) -> float:
    n, m, total = size, len(ranks) - size, len(ranks)
    ties = sum(t**3 - t for t in Counter(ranks).values())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    return erfc(max(0.0, distance - 0.5) / sqrt(2 * variance)) if variance else 1.0
