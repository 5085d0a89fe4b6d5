"""Levels for verdicts that are looked for again after every repeat, until there is one.

Looking after each repeat and stopping at the first p value under 5% finds a difference between equal variants in more
than 5% of all cases (in how many, `tests/unit/benchmarks/report/test_sequential.py` counts). So the level is spent over
the looks (Lan and DeMets 1983): none of it before six pairs, all of it by sixty, and in between as 1 - sqrt(5 / n). The
sums of signed ranks at all looks together have one distribution, whatever the symmetric noise is, which is simulated:
each look is given the largest p value at which no more than that share of the simulated sequences has stopped. Levels
do not depend on how many looks there will be.
"""

from functools import cache
from math import sqrt

import numpy as np

from paralab.benchmarks.report.choices import FIRST, LAST
from paralab.benchmarks.report.paired import null

SEQUENCES = 40_000


def level(pairs: int, total: float) -> float:
    """Return the one-sided p value that decides at a look, so that all looks together err in `total` of all cases."""
    if pairs < FIRST:
        return 0.0
    return _levels(total)[min(pairs, LAST) - FIRST]


def least_pairs(total: float) -> int:
    """Return how many pairs the first look has that can decide. Raises: StopIteration where none can."""
    return next(pairs for pairs in range(FIRST, LAST + 1) if level(pairs, total))


@cache
def _levels(total: float) -> tuple[float, ...]:
    sums = _signed_ranks()
    going = np.ones(SEQUENCES, dtype=bool)
    found = []
    for pairs in range(FIRST, LAST + 1):
        mine = sums[pairs - FIRST]
        left = total * _spent(pairs) * SEQUENCES - np.count_nonzero(~going)
        stopped = np.cumsum(np.bincount(mine[going], minlength=null(pairs).size)[::-1])  # at this sum or a larger one
        taken = int(np.searchsorted(stopped, left, side="right"))  # how many of the largest sums decide
        going &= mine < null(pairs).size - taken
        found.append(float(null(pairs)[null(pairs).size - taken :].sum()))
    return tuple(found)


def _spent(pairs: int) -> float:
    """Return the share of the level that is spent by a look."""
    return (1 - sqrt((FIRST - 1) / pairs)) / (1 - sqrt((FIRST - 1) / LAST))


@cache
def _signed_ranks() -> np.ndarray:
    """Return the sums of positive ranks of sequences without a difference, shape (looks, sequences)."""
    noise = np.random.default_rng(0).standard_normal((LAST, SEQUENCES), dtype=np.float32)
    total, found = np.zeros(SEQUENCES, dtype=np.int16), []
    for pairs in range(1, LAST + 1):
        total = total + np.count_nonzero(noise[:pairs] + noise[pairs - 1] > 0, axis=0).astype(np.int16)
        if pairs >= FIRST:
            found.append(total)
    return np.stack(found)
