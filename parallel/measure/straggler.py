"""Which rank the others wait for, in which step most, and what it does meanwhile."""

import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from paralab.measure.split import Split

Cause = Literal["compute", "data", "host", "communication"]


def exposed_share(ranks: Sequence[Split]) -> float:
    """Return the exposed share of the step time, as a mean over ranks."""
    return statistics.mean(split.exposed_s / split.step_s for split in ranks)


class Straggler(NamedTuple):
    """The rank that needs most time itself, and how many times that of the others (their median)."""

    rank: int
    ratio: float | None


def straggler(ranks: Sequence[Split]) -> Straggler:
    """Return the slowest of two ranks or more; its ratio is None where the others need no time that could be measured.

    Steps take equally long on all ranks, because they wait for each other; what differs is what a rank needs itself.
    """
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].own_s)
    others_s = statistics.median(split.own_s for rank, split in enumerate(ranks) if rank != slowest)
    return Straggler(slowest, ranks[slowest].own_s / others_s if others_s > 0 else None)


class Lag(NamedTuple):
    """How far a rank was behind the median of the others in one step, and in what it took longer than they did."""

    step: int
    behind_s: float
    cause: Cause


def furthest_behind(ranks: Sequence[Sequence[Split]], rank: int) -> Lag:
    """Return the step in which a rank was furthest behind. ranks: the splits of each rank, of the same steps.

    The cause is what it took longer for than the others: compute, data or host. Where even this rank waits for longer
    than it is behind, none holds the others up much, and the cause is communication. step: from 0.
    Raises: ValueError where there is no other rank, or no step.
    """
    lags = [_lag(step, [splits[step] for splits in ranks], rank) for step in range(len(ranks[rank]))]
    return max(lags, key=lambda lag: lag.behind_s)


def _lag(step: int, splits: Sequence[Split], rank: int) -> Lag:
    mine, others = splits[rank], [split for other, split in enumerate(splits) if other != rank]
    behind_s = mine.own_s - statistics.median(split.own_s for split in others)
    causes: tuple[Cause, ...] = ("compute", "data", "host")
    more_s = {
        cause: mine.own_parts_s.get(cause, 0.0) - statistics.median(x.own_parts_s.get(cause, 0.0) for x in others)
        for cause in causes
    }
    cause: Cause = "communication" if mine.exposed_s > behind_s else max(causes, key=lambda name: more_s[name])
    return Lag(step, behind_s, cause)
