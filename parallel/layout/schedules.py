"""Pipeline schedules: which stages a rank has, how many layers, and of which passes one consists. Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

PassKind = Literal["F", "B", "I", "W"]
ScheduleName = Literal["naive", "gpipe", "1f1b", "interleaved", "zero-bubble", "zbv", "dualpipev"]


class Pass(NamedTuple):
    """One step of a schedule. B is a whole backward; I and W are its halves, input and weights."""

    kind: PassKind
    stage: int
    micro_batch: int


@dataclass(frozen=True)
class Schedule:
    """A pipeline schedule: its name, how many stages each rank holds, and where.

    v_shaped: the second stage of a rank counts from the end, so that the first and the last one share rank 0.
    fewest: the fewest stages that a rank may hold, where another number than the usual one may be asked for.
    splits_backward: whether gradients of weights are taken in passes of their own.
    """

    name: ScheduleName
    stages_per_rank: int
    v_shaped: bool = False
    fewest: int | None = None
    splits_backward: bool = False

    @property
    def word(self) -> str:
        """The word of a layout for it: `interleaved`, or with another number of stages a rank `interleavedx4`."""
        usual = SCHEDULES[self.name].stages_per_rank == self.stages_per_rank
        return self.name if usual else f"{self.name}x{self.stages_per_rank}"

    def stages_of(self, pp_rank: int, pp: int) -> tuple[int, ...]:
        """Return the stage indices that one pipeline rank holds, first to last."""
        if self.v_shaped:
            return (pp_rank, 2 * pp - 1 - pp_rank)
        return tuple(pp_rank + i * pp for i in range(self.stages_per_rank))

    def rank_of(self, stage: int, pp: int) -> int:
        """Return the pipeline rank that holds a stage."""
        return next(rank for rank in range(pp) if stage in self.stages_of(rank, pp))


# `naive` is the layer split without overlap: GPipe with a single micro-batch.
SCHEDULES: Mapping[str, Schedule] = {
    s.name: s
    for s in (
        Schedule("naive", 1),
        Schedule("gpipe", 1),
        Schedule("1f1b", 1),
        Schedule("interleaved", 2, fewest=2),
        Schedule("zero-bubble", 2, fewest=1, splits_backward=True),
        Schedule("zbv", 2, v_shaped=True, splits_backward=True),
        Schedule("dualpipev", 2, v_shaped=True, splits_backward=True),
    )
}


# Schedules by names that papers have for them, and what to type: what torch.distributed.pipelining has no schedule for
# is not trained.
_NO_SCHEDULE = "torch.distributed.pipelining has no such schedule, use zero-bubblex1, which is ZB-H1, or zbv"
ELSEWHERE: Mapping[str, str] = {
    "zb-h1": "one stage a rank of zero-bubble, write zero-bubblex1",
    "zb-h2": _NO_SCHEDULE,
    "zb-1p": "write zero-bubble",
    "zb-2p": _NO_SCHEDULE,
    "dualpipe": "torch.distributed.pipelining has no such schedule, use dualpipev",
    "interleavedx1": "one stage a rank is 1f1b, write that",
}


def find(word: str) -> Schedule | None:
    """Return the schedule of a word, such as `1f1b` or `interleavedx4`, four stages a rank; None for an unknown one."""
    if word in SCHEDULES:
        return SCHEDULES[word]
    match = re.fullmatch(r"(.+)x([0-9]{1,5})", word)
    known = SCHEDULES.get(match[1]) if match else None
    if match is None or known is None or known.fewest is None or int(match[2]) < known.fewest:
        return None
    return replace(known, stages_per_rank=int(match[2]))


def layers_of_stages(layers: int, stages: int, *, first: int | None = None, last: int | None = None) -> tuple[int, ...]:
    """Return how many of a model's layers each pipeline stage has, in order; they add up to `layers`.

    Evenly: where that does not divide, the first stages have one more. Where the layers of the first or the last stage
    are given, the other stages share the rest evenly, and the later ones have one more: the earlier ones keep more
    micro-batches under way. A number below 1, or a sum that is another, is for the caller to refuse.
    """
    if first is None and last is None:
        each, more = divmod(layers, stages)
        return (*[each + 1] * more, *[each] * (stages - more))
    ends = [[count] if count is not None else [] for count in (first, last)]
    others = stages - sum(map(len, ends))
    each, more = divmod(layers - sum(map(sum, ends)), others or 1)
    return (*ends[0], *[each] * (others - more), *[each + 1] * more, *ends[1])
