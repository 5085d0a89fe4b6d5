"""A trace of one step of this rank, as events of the Trace Event Format, which Perfetto and chrome://tracing read.

Operations and kernels come from torch.profiler, collectives from the ledger, waiting from `paralab.measure.waits` and
the passes of a pipeline from the timeline. Their clocks are put onto one, which is the same on all ranks. Source of the
format: "Trace Event Format" (Google), complete and metadata events.

All of that slows the step down, by far more than it is worth where steps are timed: trace a step of its own.
"""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from paralab.errors import WriteError
from paralab.measure.calls import Call
from paralab.measure.ledger import CommLedger
from paralab.measure.timeline import Timeline
from paralab.measure.trace_events import Event, collectives, passes, profiled, step_lane
from paralab.measure.waits import Waits
from paralab.processes.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage

_CLOCK = "paralab clock"
_END_BYTES = 64  # of a trace: more than what stands around its name at the end, whose letters may be escaped


class StepTrace:
    """Trace a step: `with StepTrace(mesh, stages, step=7) as seen: engine.step(seen.next(batches))`.

    Its `events` are there afterwards. stages: those of a pipeline on this rank, or none. Collective: the ranks agree on
    a moment when it is entered.
    """

    def __init__(self, mesh: Mesh, stages: "Sequence[PipelineStage]", *, step: int) -> None:
        cuda, groups = mesh.device.type == "cuda", mesh.groups() if mesh.world is not None else {}
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self._profile = profile(activities=activities, record_shapes=True)
        self._timeline, self._step = Timeline(stages, mesh), step
        self._calls: list[Call] = []
        self._ledger = CommLedger(groups, on_call=self._calls.append)
        self._waits = None if cuda else Waits(groups)
        self.events: list[Event] = []

    def __enter__(self) -> "StepTrace":
        with ExitStack() as stack:
            stack.enter_context(self._timeline)
            with _silent():
                stack.enter_context(self._profile)
            stack.enter_context(self._ledger)
            self._clocks = [_clock_readings() for _ in range(10)]
            if self._waits is not None:
                self._waits.start()
            self._stack = stack.pop_all()
        self._start_s = self._data_end_s = time.monotonic()
        return self

    def __exit__(self, *exception: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        end_s = time.monotonic()
        if self._waits is not None:
            self._waits.stop()
        with _silent():
            self._stack.__exit__(*exception)
        if exception[0] is None:
            self.events = list(self._all_events(end_s))

    def next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch; it is waited for from the beginning of the step on."""
        batch = next(batches)
        self._data_end_s = time.monotonic()
        return batch

    def _all_events(self, end_s: float) -> Iterable[Event]:
        zero_s, raw = self._timeline.zero_s, _exported(self._profile)
        marks = [event["ts"] / 1e6 for event in raw if event["name"] == _CLOCK]
        # of the readings that the profiler's mark lies between, the closest tell best how the clocks differ
        earlier_s, mark_s, later_s = min(
            ((before, mark, after) for (before, after), mark in zip(self._clocks, sorted(marks), strict=True)),
            key=lambda reading: reading[2] - reading[0],
        )
        profiler_zero_s = mark_s - (earlier_s + later_s) / 2 + zero_s
        operations, gloo = profiled([e for e in raw if e["name"] != _CLOCK], zero_s=profiler_zero_s)
        waits = self._waits.seen if self._waits is not None else None
        yield from step_lane(self._step, self._start_s, self._data_end_s, end_s, waits, zero_s=zero_s)
        yield from passes(self._timeline.spans(step=self._step, rank=0))
        yield from collectives(self._calls, gloo, zero_s=zero_s)
        yield from operations


@contextmanager
def _silent() -> Iterator[None]:
    """Keep off stderr what Kineto of torch 2.13 writes when it starts and stops, whatever the level of its log."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _clock_readings() -> tuple[float, float]:
    """Leave a mark in the profile; return the monotonic clock just before it and just after it."""
    before_s = time.monotonic()
    with record_function(_CLOCK):
        after_s = time.monotonic()
    return before_s, after_s


@contextmanager
def profiled_into(path: Path) -> Iterator[None]:
    """Write what torch.profiler sees of what is done inside, memory too, as a trace. Raises: WriteError as `export`."""
    found = profile(profile_memory=True, record_shapes=True)
    with ExitStack() as stack:
        with _silent():
            stack.enter_context(found)
        yield
        with _silent():
            stack.close()
    export(found, path)


def export(found: profile, path: Path) -> None:
    """Write a profile as a trace. Raises: WriteError where it cannot be written whole, of which torch says nothing."""
    with _silent():
        found.export_chrome_trace(str(path))
    end = b""
    if path.exists():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 6 * len(str(path)) - _END_BYTES))
            end = file.read()
    if b'"traceName"' not in end:  # torch's last key
        for partial in (path, Path(f"{path}.tmp")):
            partial.unlink(missing_ok=True)
        raise WriteError(f"{path} cannot be written whole: make room there")


def _exported(found: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        export(found, path)
        return [event for event in json.loads(path.read_text())["traceEvents"] if event.get("ph") == "X"]
