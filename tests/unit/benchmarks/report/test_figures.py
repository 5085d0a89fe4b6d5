"""What the charts of a report are made of: every rank, every stage, one colour and one scale for one meaning."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from paralab.benchmarks.report import figures, sections, slowest
from paralab.benchmarks.report.losses import Curve, charts_of
from paralab.benchmarks.report.scaling import scaling
from paralab.benchmarks.report.sections import Piece
from paralab.benchmarks.report.sources import load
from paralab.measure.span import SpanRecord
from paralab.pages import palette
from paralab.records.log import LogRecord, MemoryRecord, SplitRecord, StepLog
from paralab.records.log_files import log_path
from paralab.records.row import RunRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

PARTS = {"compute": 0.06, "data": 0.01, "bubble": 0.01, "comm_dp_shard": 0.02}
STARTS: tuple[tuple[Literal["F", "B", "W"], float], ...] = (("F", 0.0), ("B", 0.3), ("W", 0.5))
MIB = 2**20


def log(path: Path, record: RunRecord, *, parts: bool = True, stages: int = 1, ranks: int = 2) -> None:
    """Write what the ranks of a run log, stage by stage of each rank where there are several."""
    for rank in range(ranks):
        rows: list[LogRecord] = [MemoryRecord(rank=rank, parameters_bytes=(rank + 1) * MIB, activations_bytes=MIB // 2)]
        told = json.dumps(PARTS) if parts else None
        rows += [SplitRecord(step=9, rank=rank, compute_s=0.06, data_s=0.01, exposed_s=0.03, parts_json=told)]
        for stage in range(rank, stages * ranks, ranks):
            for kind, start in STARTS:
                at = start + stage / 20
                rows.append(SpanRecord(step=9, rank=rank, stage=stage, kind=kind, micro_batch=0, start_s=at,
                                       end_s=at + 0.04))  # fmt: skip
        file = StepLog(log_path(path, record.run_id, rank))
        for row in rows:
            file.write(row)
        file.close()


def piece(tmp_path: Path, *, parts: bool = True, stages: int = 1) -> Piece:
    path = tmp_path / "a.csv"
    record = run(0, strategy="pipeline", layout="pp2")
    append(path, record)
    log(path, record, parts=parts, stages=stages)
    (found,) = sections.pieces(load([path]))
    return found


def chart(found: Piece, title: str) -> str:
    return str(next(one.drawing for one in (*found.charts, *found.timelines) if one.title.startswith(title)))


def test_memory_is_drawn_rank_by_rank_in_mib(tmp_path: Path) -> None:
    drawn = chart(piece(tmp_path), "Memory by category")
    for told in ("pipeline rank 0, parameters: 1 MiB", "pipeline rank 1, parameters: 2 MiB",
                 "pipeline rank 1, activations: 0.5 MiB"):  # fmt: skip
        assert f"<title>{told}</title>" in drawn
    assert drawn.count(">pipeline<") == 1 and ">rank 1<" in drawn and ">2.5 MiB<" in drawn


def test_memory_of_several_runs_has_its_range(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for number, size in enumerate((8, 10, 9)):
        append(path, run(number, strategy="ddp", memory_parameters_bytes=size * MIB))
    (found,) = sections.pieces(load([path]))
    drawn = chart(found, "Memory by category")
    ((start, end),) = re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="median">', drawn)
    ((bar, wide),) = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"[^>]*class="fill c-blue"><title>', drawn
    )
    assert (float(start) - float(bar)) / float(wide) == pytest.approx(8 / 9, abs=1e-3)
    assert (float(end) - float(bar)) / float(wide) == pytest.approx(10 / 9, abs=1e-3)


def test_time_is_drawn_rank_by_rank_and_waiting_by_axis(tmp_path: Path) -> None:
    drawn = chart(piece(tmp_path), "Where the time")
    assert "pipeline rank 1, communication over dp_shard: 20 ms" in drawn and "rank 1, in the bubble: 10 ms" in drawn
    old = chart(piece(tmp_path / "old", parts=False), "Where the time")
    assert "pipeline rank 1, communication: 30 ms" in old


@pytest.mark.parametrize("stages", [1, 2])
def test_the_timeline_has_every_rank_and_every_stage_of_it(tmp_path: Path, stages: int) -> None:
    found = piece(tmp_path, stages=stages)
    drawn = chart(found, "Pipeline timeline: pipeline")
    rows = re.findall(r">(rank [^<]*)</text>", drawn)
    assert rows == (["rank 0", "rank 1"] if stages == 1 else [
        "rank 0, stage 0", "rank 0, stage 2", "rank 1, stage 1", "rank 1, stage 3"])  # fmt: skip
    assert len(re.findall(r'<rect [^>]*class="span', drawn)) == 2 * stages * 3
    assert found.timelines[0].caption.startswith("All 2 ranks in one step")
    kinds = {"forward": "F", "backward": "B", "weight gradient": "W"}
    for name, kind in kinds.items():
        (tip,) = set(re.findall(rf'class="span c-(\w+)"><title>rank [^<]*, {name} 0', drawn))
        assert tip == palette.PASSES[kind].colour


def test_pieces_of_the_same_work_have_one_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for number, (world_size, time_s) in enumerate([(1, 0.28), (2, 0.14), (2, 0.15), (4, 0.11)]):
        append(path, run(number, strategy="single" if world_size == 1 else "ddp", layout=f"dp{world_size}",
                         world_size=world_size, step_time_p50_s=time_s))  # fmt: skip
    scales = [re.findall(r'class="tick">([^<]*)<', chart(one, "Step time")) for one in sections.pieces(load([path]))]
    assert len(scales) == 3 and scales[0] == scales[1] == scales[2] and "300 ms" in scales[0]


def test_a_part_has_one_colour_in_every_chart(tmp_path: Path) -> None:
    assert slowest.LOOKS["computing"] == palette.STEP["compute"]
    drawn = chart(piece(tmp_path), "Where the time")
    (dp_shard,) = set(re.findall(r'class="fill c-(\w+)"><title>[^<]*over dp_shard', drawn))
    assert dp_shard == palette.COMMUNICATION["dp_shard"].colour


def test_a_point_of_scaling_is_a_run_that_was_made(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    number = 0
    for strategy, sizes in (("single", (1,)), ("ddp", (2, 4)), ("zero3", (4,))):
        for size in sizes:
            for repeat in range(3):
                record = run(number, strategy=strategy, layout=f"dp{size}", world_size=size)
                append(path, replace(record, samples_per_s=100.0 * size**0.5 + repeat))
                number += 1
    (found,) = scaling(load([path]))[:1]
    drawn = str(found.drawing)
    one, two, four = 101.0, 100 * 2**0.5 + 1, 201.0  # samples/s, the middle one of three runs
    assert set(re.findall(r"<title>(\w+): ([\d.]+)% at (\d)", drawn)) == {
        ("single", "100", "1"), ("ddp", f"{100 * two / 2 / one:.3g}", "2"), ("ddp", f"{100 * four / 4 / one:.3g}", "4"),
        ("zero3", f"{100 * four / 4 / one:.3g}", "4"),
    }  # fmt: skip
    (source,) = load([path])
    several = replace(source, records=tuple(record for record in source.records if record.world_size != 1))
    without_one = str(scaling([several])[0].drawing)  # so that the fewest processes of each are its ideal
    assert set(re.findall(r"<title>(\w+): ([\d.]+)% at (\d)", without_one)) == {
        ("ddp", "100", "2"), ("ddp", f"{100 * (four / 4) / (two / 2):.3g}", "4"), ("zero3", "100", "4"),
    }  # fmt: skip
    assert drawn.count('class="whisker') == 4 and "Bars are the range over runs." in found.caption


def test_losses_apart_are_lines_of_their_own_with_their_colours() -> None:
    falling = {step: 5.0 - step / 10 for step in range(20)}
    off = {step: loss * 1.02 for step, loss in falling.items()}
    looks = palette.STRATEGIES
    losses, distance = charts_of([
        Curve("zero3", off, looks["zero3"]),
        Curve("single", falling, looks["single"], reference=True),
        Curve("ddp", {step: loss * (1 + 1e-4) for step, loss in falling.items()}, looks["ddp"]),
    ])  # fmt: skip
    assert re.findall(r'class="line c-(\w+)"><title>([^<]*)', losses.drawing) == [
        ("violet", "zero3"),
        ("black", "single, ddp"),
    ]
    assert distance.title == "Loss: difference from single"
    assert re.findall(r'class="line c-(\w+)"><title>([^<]*)', distance.drawing) == [
        ("violet", "zero3"),
        ("blue", "ddp"),
    ]
    assert not charts_of([Curve("none", {}, looks["ddp"])])
    (equal,) = charts_of([Curve("single", falling, looks["single"]), Curve("ddp", dict(falling), looks["ddp"])])
    assert equal.caption == "All losses are equal in every digit."


def test_sizes_of_charts_are_in_one_unit() -> None:
    assert [figures.mib(size) for size in (0, 0.537, 21.6, 1234.4)] == ["0", "0.537 MiB", "21.6 MiB", "1,234 MiB"]
