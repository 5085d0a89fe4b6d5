"""Pipeline schedules: which stages a rank has, how many layers, and of which passes one consists. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """A pipeline schedule: its name, how many stages each rank holds, and what it asks of micro-batches."""

    name: ScheduleName
    stages_per_rank: int
    v_shaped: bool = False  # the second stage of a rank counts from the end, so first and last share rank 0

    def stages_of(self, pp_rank: int, pp: int) -> tuple[int, ...]:
        """Return the stage indices that one pipeline rank holds, first to last."""
        if self.v_shaped:
            return (pp_rank, 2 * pp - 1 - pp_rank)
        return tuple(pp_rank + i * pp for i in range(self.stages_per_rank))

    def rank_of(self, stage: int, pp: int) -> int:
        """Return the pipeline rank that holds a stage."""
        return next(rank for rank in range(pp) if stage in self.stages_of(rank, pp))


# `naive` is the layer split without overlap: GPipe with a single micro-batch.
SCHEDULES: Mapping[ScheduleName, Schedule] = {
    s.name: s
    for s in (
        Schedule("naive", 1),
        Schedule("gpipe", 1),
        Schedule("1f1b", 1),
        Schedule("interleaved", 2),
        Schedule("zero-bubble", 2),
        Schedule("zbv", 2, v_shaped=True),
        Schedule("dualpipev", 2, v_shaped=True),
    )
}


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
