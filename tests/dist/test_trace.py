"""A trace of all ranks, read back: spans nest, clocks agree, and collectives are those that the ledger counts."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from paralab.layout import Layout
from paralab.options.config import RunConfig
from tests.dist.workers import WorkerPool


@pytest.mark.parametrize("layout", ["dp2.pp2/1f1b/mb2", "dp2/zero3"])
def test_a_trace_of_all_ranks(workers: WorkerPool, layout: str, tmp_path: Path) -> None:
    run = RunConfig(model="gpt2", size="tiny", layout=Layout.parse(layout), global_batch_size=8)
    counted = [rows for rows in workers.run("tests.dist.cases:traced", run, str(tmp_path / "trace.json")) if rows]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["pid"] - 1: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert [names[rank].split(" (")[0] for rank in sorted(names)] == [f"rank {rank}" for rank in range(len(counted))]
    lanes = _lanes(events)
    for spans in lanes.values():
        _check_nested(spans)
    for rank, rows in enumerate(counted):
        mine = {lane: found for (pid, lane), found in lanes.items() if pid == rank}
        seen = [span for lane, found in mine.items() if lane.startswith("over") for span in found]
        calls, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for span in seen:
            calls[span["args"]["axis"], span["name"]] += 1
            sizes[span["args"]["axis"], span["name"]] += span["args"]["payload_bytes"]
        assert calls == {(row.axis, row.op): row.calls for row in rows}
        assert sizes == {(row.axis, row.op): row.payload_bytes for row in rows}
        assert all(span["dur"] > 0 for span in seen)  # each has an end
        whole, *parts = mine["step"]
        assert whole["name"] == "step 2" and {"computing", "waiting for data"} < {part["name"] for part in parts}
        assert sum(part["dur"] for part in parts) == pytest.approx(whole["dur"], rel=1e-3)
        assert any(lane.startswith("torch") for lane in mine)
    if "pp2" in layout:
        _check_pipeline(lanes)


def _lanes(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """Return the spans of each rank and lane, in order, the longer of two that begin together first."""
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[event["pid"] - 1, names[event["pid"], event["tid"]]].append(event)
    return {lane: sorted(spans, key=lambda span: (span["ts"], -span["dur"])) for lane, spans in lanes.items()}


def _check_nested(spans: list[dict[str, Any]]) -> None:
    ends: list[float] = []
    for span in spans:
        while ends and ends[-1] <= span["ts"]:
            ends.pop()
        assert not ends or span["ts"] + span["dur"] <= ends[-1], span
        ends.append(span["ts"] + span["dur"])


def _check_pipeline(lanes: dict[tuple[int, str], list[dict[str, Any]]]) -> None:
    """Hold passes of two stages, on ranks 0 and 2, against each other: on one clock, none begins before it can."""
    first, second = ({span["name"]: span for span in lanes[rank, "passes"]} for rank in (0, 2))
    assert len(first) == len(second) == 4
    for micro_batch in range(2):
        for kind, (here, there), (before, after) in (
            ("forward", (0, 1), (first, second)),
            ("backward", (1, 0), (second, first)),
        ):
            sent = before[f"{kind} {micro_batch} of stage {here}"]
            assert sent["ts"] + sent["dur"] < after[f"{kind} {micro_batch} of stage {there}"]["ts"]
