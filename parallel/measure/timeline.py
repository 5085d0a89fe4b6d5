"""Timeline of a pipeline step: when each stage worked, how long ranks were idle, and how long they must be by schedule.

A pass is the forward (F), backward (B) or weight (W) computation of one micro-batch in one stage. What a rank waits
for between passes is idle time: the bubble. Collectives inside a pass (tensor parallelism, batch statistics) count
as work.
"""

import functools
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from paralab.layout.schedules import Pass, PassKind
from paralab.measure.span import SpanRecord
from paralab.processes.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

# In forward passes. A backward is twice a forward (two products for each one), and splits evenly into the gradient
# of the input and that of the weights (Qi et al. 2023, Zero Bubble Pipeline Parallelism, section 2).
_COSTS: Mapping[PassKind, int] = {"F": 1, "B": 2, "I": 1, "W": 1}
_METHODS: Mapping[str, Literal["F", "B", "W"]] = {
    "forward_one_chunk": "F",
    "backward_one_chunk": "B",
    "backward_weight_one_chunk": "W",
}


@dataclass(frozen=True)
class _Mark:
    kind: Literal["F", "B", "W"]
    stage: int
    micro_batch: int
    start: Any  # seconds, or a CUDA event
    end: Any


class Timeline:
    """Note the start and end of every pass of these stages while entered. Enter it around a step that is not timed.

    On a GPU the times are those of the stream, noted by events and read when the context ends.
    """

    def __init__(self, stages: "Sequence[PipelineStage]", mesh: Mesh) -> None:
        self.stages, self.mesh = stages, mesh
        self._cuda = mesh.device.type == "cuda"
        self._marks: list[_Mark] = []
        self._seen: Counter[tuple[str, int, int]] = Counter()
        self.zero_s = 0.0  # of the spans, on the monotonic clock

    def __enter__(self) -> "Timeline":
        self.zero_s = common_moment(self.mesh)
        if self._cuda:
            torch.cuda.synchronize()
            self._first, self._first_s = self._now(), time.monotonic()
        for stage in self.stages:
            for method, kind in _METHODS.items():
                setattr(stage, method, self._watched(getattr(stage, method), kind, stage.stage_index))
        return self

    def __exit__(self, *exception: object) -> None:
        for stage in self.stages:
            for method in _METHODS:
                delattr(stage, method)  # the class's own shows again
        if self._cuda:
            torch.cuda.synchronize()

    def spans(self, *, step: int, rank: int) -> list[SpanRecord]:
        """Return the passes of this rank, in order of time."""
        return [
            SpanRecord(
                step=step,
                rank=rank,
                stage=mark.stage,
                kind=mark.kind,
                micro_batch=mark.micro_batch,
                start_s=self._seconds(mark.start),
                end_s=self._seconds(mark.end),
            )
            for mark in self._marks
        ]

    def _watched(self, method: Any, kind: Literal["F", "B", "W"], stage: int) -> Any:
        @functools.wraps(method)
        def watched(chunk: int, *args: Any, **kwargs: Any) -> Any:
            start = self._now()
            result = method(chunk, *args, **kwargs)
            # A schedule that runs several times a step counts its micro-batches from zero each time.
            earlier = self._seen[kind, stage, chunk]
            self._seen[kind, stage, chunk] += 1
            self._marks.append(_Mark(kind, stage, chunk + earlier, start, self._now()))
            return result

        return watched

    def _now(self) -> Any:
        if not self._cuda:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, moment: Any) -> float:
        if self._cuda:
            moment = self._first_s + self._first.elapsed_time(moment) / 1e3
        return moment - self.zero_s


def common_moment(mesh: Mesh) -> float:
    """Return a moment that is the same for all ranks of a mesh, on this process's monotonic clock. Collective.

    It is when the first rank of each machine left a barrier. Processes of one machine share the clock, so between
    them it is exact; between machines it is off by what the barrier takes to reach them, about one message.
    """
    if mesh.world is None:
        return time.monotonic()
    dist.barrier(group=mesh.world)
    mine = (socket.gethostname(), time.monotonic())
    moments: list[Any] = [None] * mesh.layout.world_size
    dist.all_gather_object(moments, mine, group=mesh.world)
    return min(moment for host, moment in moments if host == mine[0])


def idle_shares(spans: Sequence[SpanRecord]) -> dict[int, float]:
    """Return the share of the step in which each rank computed nothing.

    The step runs from the first pass of any rank to the end of the last one. Raises: ValueError without spans.
    """
    start, end = min(span.start_s for span in spans), max(span.end_s for span in spans)
    busy_s: dict[int, float] = {}
    for span in spans:
        busy_s[span.rank] = busy_s.get(span.rank, 0.0) + span.end_s - span.start_s
    return {rank: 1 - busy_s[rank] / (end - start) for rank in sorted(busy_s)}


def bubble_share(spans: Sequence[SpanRecord]) -> float:
    """Return the idle share of a step, as a mean over the ranks. Raises: ValueError without spans."""
    shares = idle_shares(spans)
    return sum(shares.values()) / len(shares)


@dataclass(frozen=True)
class PlannedPass:
    """A pass of a schedule, and when it starts and ends, in forward passes of one stage since the first one."""

    step: Pass
    start: int
    end: int


def planned(order: Sequence[Sequence[Pass]]) -> list[list[PlannedPass]]:
    """Return when each rank does its passes where all stages cost the same and messages take no time.

    order: the passes of each rank. Each starts when its rank is free and what it needs is there.
    """
    ends: dict[Pass | None, int] = {None: 0}
    found: list[list[PlannedPass]] = [[] for _ in order]
    last_stage = max(step.stage for steps in order for step in steps)
    while any(len(mine) < len(steps) for mine, steps in zip(found, order, strict=True)):
        following = [
            (mine, steps[len(mine)]) for mine, steps in zip(found, order, strict=True) if len(mine) < len(steps)
        ]
        ready = [(mine, step) for mine, step in following if _need(step, last_stage) in ends]
        assert ready, "the ranks of this order wait for each other"
        for mine, step in ready:
            start = max(mine[-1].end if mine else 0, ends[_need(step, last_stage)])
            mine.append(PlannedPass(step, start, start + _COSTS[step.kind]))
            ends[_result(step)] = mine[-1].end
    return found


def bubble_theory_share(order: Sequence[Sequence[Pass]]) -> float:
    """Return the idle share of a schedule whose stages all cost the same and whose messages take no time.

    order: the passes of each rank. For GPipe and 1F1B this gives (pp - 1) / (micro-batches + pp - 1) (Narayanan et al.
    2021, section 2.2).
    """
    ranks = planned(order)
    busy = sum(done.end - done.start for rank in ranks for done in rank)
    return 1 - busy / (len(ranks) * max(rank[-1].end for rank in ranks))


def _result(step: Pass) -> Pass:
    """Return what a pass provides: the gradient of the input is the same from a whole backward as from half of one."""
    return step._replace(kind="I") if step.kind == "B" else step


def _need(step: Pass, last_stage: int) -> Pass | None:
    """Return what a pass waits for from another stage. What it needs of its own stage comes earlier in its order."""
    if step.kind == "F" and step.stage > 0:
        return step._replace(stage=step.stage - 1)
    if step.kind in ("B", "I") and step.stage < last_stage:
        return Pass("I", step.stage + 1, step.micro_batch)
    return None
