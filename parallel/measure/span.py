"""One pass of a pipeline stage, as the timeline records it and the log of a rank keeps it. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SpanRecord:
    """One forward (F), backward (B) or weight (W) pass of one micro-batch in a pipeline stage.

    Times are seconds since a moment that is the same on all ranks.
    """

    step: int
    rank: int
    stage: int
    kind: Literal["F", "B", "W"]
    micro_batch: int
    start_s: float
    end_s: float
