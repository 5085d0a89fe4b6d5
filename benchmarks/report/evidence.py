"""What the runs of two variants say about the ratio of their numbers: a test, an interval, and how many runs it takes.

Repeats that were interleaved are compared in pairs (`paralab.benchmarks.report.paired`), others run by run, with what a
machine that drifts could do by itself (`paralab.benchmarks.report.drift`). That two variants are equivalent within a
margin takes two one-sided tests (Schuirmann 1987): the ratio is not as low as its lower bound, nor as high as its
upper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, log1p, sqrt
from statistics import NormalDist

import numpy as np

from paralab.benchmarks.report import drift, sequential, stats
from paralab.benchmarks.report.paired import Pairs, least_pairs

LEVEL = 0.05
LEAST_RUNS = 4
NOT_INTERLEAVED = "not interleaved: p and interval allow for a machine whose speed drifts"
_EFFICIENCY = 0.955  # of signed and of unsigned ranks beside the t test, for normal noise (Lehmann 1975)
_MOST_RUNS = 1000


@dataclass(frozen=True)
class Evidence:
    """What runs say. p values are small where there is evidence, and two-sided but for `p_equivalent`."""

    ratio: float
    low: float | None  # 95% interval of the ratio; None where the level of a look is too small for one
    high: float | None
    p: float
    p_independent: float  # were the runs of a machine that does not drift
    p_equivalent: float | None  # None where no margin was given
    pairs: int = 0  # 0: runs were not compared in pairs
    in_turns: bool = True
    corrected: bool = False  # for looks and for the variants beside it


def of_pairs(pairs: Pairs, within: float | None, *, tests: int, looks: bool) -> Evidence:
    """Weigh pairs. looks: they went on until there was a verdict, so p values are corrected for looks and tests."""
    margin = None if within is None else max(pairs.p_above(1 - within), pairs.p_below(1 + within))
    p, tail = pairs.p, LEVEL / 2
    if looks:
        tail = sequential.level(len(pairs), LEVEL / 2)
        p = _scaled(p, LEVEL, 2 * sequential.level(len(pairs), LEVEL / 2 / tests))
        margin = None if margin is None else _scaled(margin, LEVEL, sequential.level(len(pairs), LEVEL / tests))
    low, high = pairs.interval(tail) or (None, None)
    return Evidence(pairs.ratio, low, high, p, p, margin, pairs=len(pairs), corrected=looks)


def _scaled(p: float, level: float, needed: float) -> float:
    """Return a p value that has to be below `level`, of one that may be `needed` and no more."""
    return min(1.0, p * level / needed * (1 - 1e-9)) if needed else 1.0


def of_runs(
    base: Sequence[float], other: Sequence[float], times: Sequence[Sequence[str]] | None, within: float | None
) -> Evidence:
    """Weigh runs one by one. times: when each was started, ISO 8601, of both variants; None where they are repeats of
    one sweep, in a random order."""
    ratio = stats.median(other) / stats.median(base)
    drifting = drift.Drift() if times is None else drift.judge(base, other, *times)
    independent = stats.mann_whitney(base, other)
    low, high = _widened(*stats.ratio_interval(base, other), ratio, drifting.factor)
    margin = None if within is None else _equivalent(base, other, within, drifting.factor)
    p = max(independent, drifting.p)
    return Evidence(ratio, low, high, p, independent, margin, in_turns=drifting.in_turns)


def _widened(low: float, high: float, ratio: float, factor: float) -> tuple[float, float]:
    return (low, high) if factor == 1 else (min(low, ratio / factor), max(high, ratio * factor))


def _equivalent(base: Sequence[float], other: Sequence[float], within: float, factor: float) -> float:
    """Return the p value of two variants being as far apart as the margin: 1 where the 90% interval passes it."""
    ratio = stats.median(other) / stats.median(base)
    low, high = _widened(*stats.ratio_interval(base, other, confidence=1 - 2 * LEVEL), ratio, factor)
    if low <= 1 - within or high >= 1 + within:
        return 1.0
    bounds = ([bound * number for number in base] for bound in (1 - within, 1 + within))
    return max(stats.mann_whitney(moved, other) / 2 for moved in bounds)


def least_runs(tests: int) -> int:
    """Return how many runs of each it takes for a verdict, where none overlap, on so many variants at once."""
    return next(n for n in range(LEAST_RUNS, _MOST_RUNS) if tests * stats.smallest_p(n, n) < LEVEL)


def repeats_to_go(
    base: Sequence[float], other: Sequence[float], pairs: Pairs, within: float, *, tests: int, looks: bool
) -> int | None:
    """Return about how many more repeats would decide, were they like these; None above a thousand.

    Half the width of an interval is that of normal noise of the same spread. None too of one repeat, which has none.
    """
    paired = looks or len(pairs) > 0
    now = len(pairs) if paired else min(len(base), len(other))
    least = least_pairs(tests, LEVEL) if paired else least_runs(tests)
    if now < 2:
        return None
    ratio = pairs.ratio if paired else stats.median(other) / stats.median(base)
    effect, spread = abs(log(ratio)), _spread(pairs, base, other, paired=paired)
    for runs in range(max(now + 1, least), _MOST_RUNS):
        tails = [level / tests for level in (LEVEL / 2, LEVEL)]
        if looks:
            tails = [sequential.level(runs, tail) for tail in tails]
        if not all(tails):
            continue
        wide, narrow = (-NormalDist().inv_cdf(tail) * spread / sqrt(_EFFICIENCY * runs) for tail in tails)
        if effect > wide or effect + narrow < log1p(within):
            return runs - now
    return None


def _spread(pairs: Pairs, base: Sequence[float], other: Sequence[float], *, paired: bool) -> float:
    """Return the standard deviation of the logarithm of the ratio of one repeat."""
    if paired:
        return float(np.std(pairs.logs, ddof=1))
    return sqrt(sum(float(np.var(np.log(side), ddof=1)) for side in (base, other)))
