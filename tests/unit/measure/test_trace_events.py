"""Events of a trace: what lies on which lane, and when."""

import json
from itertools import pairwise

from paralab.measure.calls import Call, Wait
from paralab.measure.span import SpanRecord
from paralab.measure.trace_events import Event, collectives, merged, passes, profiled, step_lane


def test_a_step_is_waiting_and_computing_in_turn() -> None:
    inside = Wait("tp", 11.2, 11.4)
    waits = [Wait("tp", 13.0, 14.0), Wait("dp", 11.0, 12.0), inside, Wait("dp", 11.5, 12.5)]
    got = list(step_lane(7, 10.0, 10.5, 15.0, waits, zero_s=10.0))
    assert [(event.name, event.start_us, event.duration_us) for event in got] == [
        ("step 7", 0.0, 5e6),
        ("waiting for data", 0.0, 5e5),
        ("computing", 5e5, 5e5),
        ("waiting over dp", 1e6, 1e6),
        ("waiting over dp", 2e6, 5e5),
        ("computing", 2.5e6, 5e5),
        ("waiting over tp", 3e6, 1e6),
        ("computing", 4e6, 1e6),
    ]
    assert [event.name for event in step_lane(7, 0.0, 0.0, 5.0, None, zero_s=0.0)] == ["step 7"]  # on a GPU


def test_a_collective_lasts_until_the_backend_has_done_it() -> None:
    calls = [Call("dp", "all_reduce", 2, 40, 1.0), Call("dp", "all_gather", 2, 80, 2.0), Call("tp", "send", 2, 8, 3.0)]
    calls.append(Call("tp", "recv", 2, 8, 5.0))
    done = [Event("x", "gloo:a", 1.1e6, 2.9e6), Event("x", "gloo:b", 2.1e6, 1e5), Event("x", "gloo:c", 5e6, 1e6)]
    got = list(collectives(calls, done, zero_s=0.0))
    assert [(event.lane, event.name, event.start_us, round(event.duration_us)) for event in got] == [
        ("over dp", "all_reduce", 1e6, 3_000_000),
        ("over dp, 2", "all_gather", 2e6, 200_000),  # beside the first, which is not done yet
        ("over tp", "send", 3e6, 0),  # nothing was done before the next one
        ("over tp", "recv", 5e6, 1_000_000),
    ]
    assert got[0].args == {"axis": "dp", "ranks": 2, "payload_bytes": 40}


def test_passes_have_their_names_and_times() -> None:
    spans = [
        SpanRecord(step=1, rank=0, stage=2, kind=kind, micro_batch=3, start_s=0.5, end_s=0.75)
        for kind in ("F", "B", "W")
    ]
    assert [(e.lane, e.name, e.start_us, e.duration_us) for e in passes(spans)] == [
        ("passes", f"{name} 3 of stage 2", 5e5, 2.5e5) for name in ("forward", "backward", "weight gradient")
    ]


def test_kernels_and_operations_are_on_lanes_of_their_own() -> None:
    raw = [
        {"name": "aten::mm", "cat": "cpu_op", "tid": 5, "ts": 30.0, "dur": 2.0, "args": {"Input Dims": [[2]], "x": 1}},
        {"name": "gemm", "cat": "kernel", "tid": 7, "ts": 31.0, "dur": 4.0},
        {"name": "copy", "cat": "gpu_memcpy", "tid": 7, "ts": 36.0, "dur": 1.0},
        {"name": "gloo:send", "cat": "user_annotation", "tid": 9, "ts": 32.0, "dur": 5.0},
        {"name": "frame", "cat": "python_function", "tid": 5, "ts": 1.0, "dur": 5.0},
    ]
    operations, gloo = profiled(raw, zero_s=10e-6)
    assert operations == [
        Event("torch, thread 5", "aten::mm", 20.0, 2.0, {"Input Dims": [[2]]}),
        Event("GPU stream 7", "gemm", 21.0, 4.0),
        Event("GPU stream 7", "copy", 26.0, 1.0),
    ]
    assert [event.name for event in gloo] == ["gloo:send"]
    events = merged([("rank 0", operations), ("rank 1 (dp 1)", gloo)])["traceEvents"]
    assert {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"} == {
        (1, "rank 0"),
        (2, "rank 1 (dp 1)"),
    }
    spans = [(e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] == "X"]
    assert spans == [(1, 1, 20.0), (1, 2, 21.0), (1, 2, 26.0), (2, 1, 22.0)]  # 0 is the kernel's in Perfetto
    assert {e["cat"] for e in events if e["ph"] == "X"} == {"torch", "GPU"}
    assert {e["ph"] for e in events} == {"M", "X"} and all(isinstance(e["pid"], int) and e["pid"] > 0 for e in events)


def test_spans_end_exactly_where_others_begin_for_who_adds_what_is_written() -> None:
    ends_us = [1e6 * (number / 7 + 1 / 3e3) for number in range(2000)]
    parts = [Event("step", "part", begin, end - begin) for begin, end in pairwise(ends_us)]
    whole = Event("step", "step", ends_us[0], ends_us[-1] - ends_us[0])
    read = json.loads(json.dumps(merged([("rank 0", [whole, *parts])])))["traceEvents"]
    first, *spans = [(e["ts"], e["ts"] + e["dur"]) for e in read if e["ph"] == "X"]
    assert all(end == begin for (_, end), (begin, _) in pairwise(spans))
    assert first == (spans[0][0], spans[-1][1])  # Perfetto drops what reaches over the end of what it is in
    assert all(1e3 * time == round(1e3 * time) for span in spans for time in span), "whole nanoseconds"
    assert all(abs(got - wanted) <= 0.0625 for (got, _), wanted in zip(spans, ends_us, strict=False))
