"""Events of a trace: spans on lanes, each lane a thread of the process that stands for a rank. Imports no torch.

Times are microseconds since a moment that all ranks share. The spans of a lane lie beside or inside each other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paralab.measure.calls import Call, Wait
from paralab.measure.span import SpanRecord

PASSES = {"F": "forward", "B": "backward", "W": "weight gradient"}
_KEPT = ("cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset", "cuda_runtime")
_DETAILS = ("Input Dims", "Input type")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_TICKS = 8  # in a microsecond: eighths have no rounding error in binary, nor in whole nanoseconds


@dataclass(frozen=True)
class Event:
    """A span on a lane, in microseconds."""

    lane: str
    name: str
    start_us: float
    duration_us: float
    args: Mapping[str, Any] = field(default_factory=dict)


def step_lane(
    step: int, start_s: float, data_end_s: float, end_s: float, waits: Sequence[Wait] | None, *, zero_s: float
) -> Iterator[Event]:
    """Yield the step, and inside it waiting for the batch, waiting for others by axis, and computing between them.

    waits: in the order of time; None where they are not known, as on a GPU, and with them when it computed.
    """

    def event(name: str, from_s: float, to_s: float, **args: Any) -> Event:
        return Event("step", name, (from_s - zero_s) * 1e6, (to_s - from_s) * 1e6, args)

    yield event(f"step {step}", start_s, end_s)
    if data_end_s > start_s:
        yield event("waiting for data", start_s, data_end_s)
    if waits is None:
        return
    reached_s = data_end_s
    for axis, from_s, to_s in sorted(waits, key=lambda wait: wait.start_s):
        from_s = max(from_s, reached_s)
        if from_s > reached_s:
            yield event("computing", reached_s, from_s)
        if to_s > from_s:
            yield event(f"waiting over {axis or 'an unknown axis'}", from_s, to_s, axis=axis)
        reached_s = max(reached_s, to_s)
    if end_s > reached_s:
        yield event("computing", reached_s, end_s)


def passes(spans: Iterable[SpanRecord]) -> Iterator[Event]:
    """Yield the passes of a pipeline."""
    for span in spans:
        name = f"{PASSES[span.kind]} {span.micro_batch} of stage {span.stage}"
        args = {"stage": span.stage, "micro_batch": span.micro_batch}
        yield Event("passes", name, span.start_s * 1e6, (span.end_s - span.start_s) * 1e6, args)


def profiled(raw: Iterable[Mapping[str, Any]], *, zero_s: float) -> tuple[list[Event], list[Event]]:
    """Return the operations and kernels of a profile of torch, and what gloo did in threads of its own, in order.

    raw: complete events as Kineto exports them, in microseconds of its own clock; zero_s: the shared moment on it.
    """
    operations: list[Event] = []
    gloo: list[Event] = []
    for event in raw:
        category, name = event.get("cat"), str(event["name"])
        if category not in _KEPT or name == "PythonDispatchMode":  # which is the tracing itself
            continue
        kind = "GPU stream" if category in _ON_GPU else "torch, thread"
        args = {key: value for key, value in event.get("args", {}).items() if key in _DETAILS}
        found = Event(f"{kind} {event['tid']}", name, event["ts"] - zero_s * 1e6, event.get("dur", 0.0), args)
        (gloo if name.startswith("gloo:") else operations).append(found)
    return operations, sorted(gloo, key=lambda event: event.start_us)


def collectives(calls: Sequence[Call], done: Sequence[Event], *, zero_s: float) -> Iterator[Event]:
    """Yield the collectives and messages, on lanes by axis: as many as it needs for those that overlap.

    done: what the backend did, by which a call is known to have ended: the first that begins after the call does and
    before the next one. A call without one is drawn as a moment (NCCL's kernels are on the lanes of their streams).
    """
    free_us: dict[str, list[float]] = {}
    remaining = list(done)
    for number, call in enumerate(calls):
        start_us = (call.start_s - zero_s) * 1e6
        next_us = (calls[number + 1].start_s - zero_s) * 1e6 if number + 1 < len(calls) else float("inf")
        while remaining and remaining[0].start_us < start_us:
            remaining.pop(0)
        end_us = start_us
        if remaining and remaining[0].start_us < next_us:
            doing = remaining.pop(0)
            end_us = doing.start_us + doing.duration_us
        args = {"axis": call.axis, "ranks": call.ranks, "payload_bytes": call.payload_bytes}
        yield Event(_lane(free_us.setdefault(call.axis, []), call.axis, start_us, end_us), call.op, start_us,
                    end_us - start_us, args)  # fmt: skip


def _lane(free_us: list[float], axis: str, start_us: float, end_us: float) -> str:
    """Return the first lane of an axis that is free by then, and take it."""
    number = next((i for i, free in enumerate(free_us) if free <= start_us), len(free_us))
    free_us[number:number + 1] = [end_us]  # fmt: skip
    return f"over {axis}" + (f", {number + 1}" if number else "")


def merged(ranks: Sequence[tuple[str, Sequence[Event]]]) -> dict[str, Any]:
    """Return one trace of all ranks, with the name and the events of each, in the Trace Event Format of Chrome.

    Processes and threads are numbered from 1: Perfetto takes process 0 for the kernel's idle one, and its maintainers
    ask that nobody uses it (github.com/google/perfetto/issues/394). Begin and end of each span are rounded, not its
    length: readers add the two numbers, and drop or cut spans that overlap by a rounding error.
    """
    events: list[dict[str, Any]] = []
    for process, (name, found) in enumerate(ranks, start=1):
        lanes = {lane: number for number, lane in enumerate(dict.fromkeys(event.lane for event in found), start=1)}
        events += _names(process, name, lanes)
        for event in sorted(found, key=lambda event: (event.start_us, -event.duration_us)):
            category = event.lane.split(" ")[0].rstrip(",")  # a comma would part two of them
            place = {"ph": "X", "pid": process, "tid": lanes[event.lane], "cat": category}
            begin = round(event.start_us * _TICKS)
            end = max(begin, round((event.start_us + event.duration_us) * _TICKS))
            when = {"ts": begin / _TICKS, "dur": (end - begin) / _TICKS}
            events.append({"name": event.name, **place, **when, "args": dict(event.args)})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _names(process: int, name: str, lanes: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    def named(kind: str, number: int | None, **args: Any) -> dict[str, Any]:
        return {"name": kind, "ph": "M", "pid": process, **({} if number is None else {"tid": number}), "args": args}

    yield named("process_name", None, name=name)
    yield named("process_sort_index", None, sort_index=process)
    for lane, number in lanes.items():
        yield named("thread_name", number, name=lane)
        yield named("thread_sort_index", number, sort_index=number)
