"""Statistics of pairs: two runs that were made one after the other, of which the machine's speed is all but the same.

What is tested are the logarithms of the ratios of pairs, since noise is multiplicative in the step time
(`docs/design/verdicts.md` says how that was found). The test is that of signed ranks (Wilcoxon 1945), exact up to 300
pairs, and the estimate and the interval are those that belong to it (Hodges and Lehmann 1963): order statistics of the
means of all pairs of logarithms. What the interval leaves out is what the test rejects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from math import erfc, sqrt

import numpy as np

from paralab.records.row import RunRecord

EXACT_PAIRS = 300  # whose null distribution is counted


@dataclass(frozen=True)
class Pairs:
    """Positive numbers of two variants, one of each in every pair."""

    base: tuple[float, ...]
    other: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.base)

    @cached_property
    def logs(self) -> np.ndarray:
        """Return the logarithm of other / base of each pair, shape (pairs,)."""
        return np.log(np.asarray(self.other) / np.asarray(self.base))

    @cached_property
    def means(self) -> np.ndarray:
        """Return the means of all pairs of logarithms, each with itself too, in order: shape (n (n + 1) / 2,)."""
        i, j = np.triu_indices(len(self))
        return np.sort((self.logs[i] + self.logs[j]) / 2)

    @property
    def ratio(self) -> float:
        return float(np.exp(np.median(self.means)))

    def interval(self, tail: float) -> tuple[float, float] | None:
        """Return the interval of the ratio that the one-sided tests at level `tail` do not reject.

        None where so few pairs reject nothing at that level.
        """
        out = int(np.searchsorted(np.cumsum(null(len(self))), tail, side="right"))
        if out == 0:
            return None
        return float(np.exp(self.means[out - 1])), float(np.exp(self.means[-out]))

    def p_above(self, ratio: float) -> float:
        """Return the one-sided p value of the true ratio being at most this: small where it is above."""
        return tail_p(int(np.count_nonzero(self.means > np.log(ratio) + _NOTHING)), len(self))

    def p_below(self, ratio: float) -> float:
        """Return the one-sided p value of the true ratio being at least this: small where it is below."""
        return tail_p(int(np.count_nonzero(self.means < np.log(ratio) - _NOTHING)), len(self))

    @property
    def p(self) -> float:
        """The two-sided p value of no difference."""
        return min(1.0, 2 * min(self.p_above(1.0), self.p_below(1.0)))


_NOTHING = 1e-12  # in logarithms: differences below it are rounding, and count as none


def tail_p(signed_rank: int, pairs: int) -> float:
    """Return how often a sum of signed ranks is at least this by chance. Ties count against a difference."""
    return min(1.0, float(null(pairs)[signed_rank:].sum()))


@cache
def null(pairs: int) -> np.ndarray:
    """Return the distribution of the sum of positive ranks of so many pairs that do not differ.

    Shape (n (n + 1) / 2 + 1,): each of 1 .. n counts or not, with equal chance. Above `EXACT_PAIRS` it is normal, of
    the same mean and variance (Lehmann 1975, section 3.2).
    """
    if pairs > EXACT_PAIRS:
        return _normal(pairs)
    found = np.ones(1)
    for rank in range(1, pairs + 1):
        found = (np.pad(found, (0, rank)) + np.pad(found, (rank, 0))) / 2
    return found


def _normal(pairs: int) -> np.ndarray:
    largest = pairs * (pairs + 1) // 2
    scale = sqrt(2 * largest * (2 * pairs + 1) / 12)  # of erfc: sqrt(2) standard deviations
    above = np.array([erfc((edge - 0.5 - largest / 2) / scale) / 2 for edge in range(largest + 2)])
    return above[:-1] - above[1:]


def least_pairs(tests: int, level: float) -> int:
    """Return how many pairs it takes for a verdict, where none of them disagrees, on so many variants at once."""
    return next(n for n in range(1, EXACT_PAIRS) if tests * 2 * 0.5**n < level)


def pair_up(base: Sequence[RunRecord], other: Sequence[RunRecord], column: str) -> Pairs:
    """Return the runs of one group that have the same number of repeat, by a column that all of them have.

    There are none where one variant was always first: what comes second in every pair is slower on a machine that slows
    down, whatever it is. `paralab bench` draws the order of each repeat, and that makes the test exact (Fisher 1935).
    """
    left, right = ({(run.group, run.repeat): run for run in runs if run.group is not None} for runs in (base, other))
    keys = [key for key in left if key in right and key[1] is not None]
    first = sum(_began(left[key]) < _began(right[key]) for key in keys)
    if min(first, len(keys) - first) < max(1, len(keys) // 8):
        return Pairs((), ())
    return Pairs(*(tuple(float(getattr(side[key], column)) for key in keys) for side in (left, right)))


def _began(run: RunRecord) -> float:
    """Return when a run was started, in seconds since 1970; 0 where its row does not say it as a time."""
    try:
        return datetime.fromisoformat(run.started_at).timestamp()
    except (ValueError, OverflowError):
        return 0.0
