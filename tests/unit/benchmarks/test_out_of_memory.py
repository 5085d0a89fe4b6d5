"""What a rank that ran out of memory would have held, and what would have made it less."""

from dataclasses import replace

import pytest

from paralab.benchmarks import out_of_memory
from paralab.layout import Layout
from paralab.measure import dry_run, memory
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve

RUN = RunConfig(size="4x32x4v257", seq_len=64, layout=Layout.parse("dp2"), global_batch_size=16)


def test_the_largest_tensors_are_those_of_the_peak_with_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SHOWN", 10**6)
    report, _ = out_of_memory.looked_at(RUN, 0)
    for category in ("parameters", "optimizer", "activations"):
        made = [one for one in report.largest if one.category == category]
        assert sum(one.size_bytes for one in made) == pytest.approx(report.peak[category], rel=0.01), category
    most = next(one for one in report.largest if one.category == "activations")
    assert ".py:" in most.made and "aten::" in most.made and "memory.py" not in most.made
    weight = next(one for one in report.largest if one.made == "embedding.weight" or "token" in one.made)
    assert weight.category == "parameters"


def test_options_are_tried_and_those_that_need_less_are_told() -> None:
    report, changes = out_of_memory.looked_at(RUN, 1)
    assert [change.peak_bytes for change in changes] == sorted(change.peak_bytes for change in changes)
    found = {change.option: change.peak_bytes for change in changes}
    assert found.keys() == {"--checkpointing full", "--accumulation 2", "--layout dp2/zero3"}
    assert max(found.values()) < report.peak_bytes
    for option, changed in (
        ("--checkpointing full", replace(RUN, checkpointing="full")),
        ("--accumulation 2", replace(RUN, accumulation=2)),
        ("--layout dp2/zero3", replace(RUN, layout=Layout.parse("dp2/zero3"))),
    ):
        (seen, *_) = dry_run.dry_run(resolve(changed, dry=True), backend="gloo")
        assert seen.memory.peak_bytes == found[option]
    (first, *_) = said = out_of_memory.lines(1, report, changes, room_bytes=report.peak_bytes)
    assert first.startswith("a step of rank 1 holds up to ") and "activations" in first
    assert said[-1].startswith(f"with other options it would be: {changes[0].option} ")
    for room_bytes, advice in (
        (report.peak_bytes - 1, f"use {changes[-1].option}: it fits into the "),  # which changes least
        (changes[0].peak_bytes, f"use {changes[0].option}: it fits into the "),
        (changes[0].peak_bytes - 1, "none of them fits into the "),
    ):
        assert out_of_memory.lines(1, report, changes, room_bytes=room_bytes)[-1].startswith(advice)
