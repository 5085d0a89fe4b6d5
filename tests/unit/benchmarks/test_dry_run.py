"""`paralab run --dry-run`: what it prints, the row it leaves, what it refuses."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from paralab import cli
from paralab.benchmarks.dry_run import _bytes_table
from paralab.benchmarks.report import sources
from paralab.records.reading import read
from paralab.records.row import RunRecord

SMALL = ["run", "--dry-run", "--size", "tiny", "--global-batch-size", "24"]
TIME = ("_s", "_per_s", "_share", "_w", "_j", "_mhz", "_c", "mfu", "hfu")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dry.csv"


def dry(out: Path, *words: str) -> int:
    return cli.main([*SMALL, "--out", str(out), *words])


def test_a_dry_run_is_never_a_measurement(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(out, "--layout", "dp3.pp2/zero1/mb2", "--gpu", "H100-SXM-80GB") == 0
    (row,) = read(out)
    assert (row.status, row.layout, row.world_size, row.backend) == ("dry run", "dp3.pp2/zero1/1f1b/mb2", 6, "nccl")
    assert row.memory_state_peak_bytes == pytest.approx(row.predicted_state_bytes, rel=0.01)
    assert row.comm_dp_sent_bytes == row.comm_dp_predicted_sent_bytes
    timed = [
        f.name for f in dataclasses.fields(RunRecord) if f.name.endswith(TIME) and getattr(row, f.name) is not None
    ]
    assert not timed
    with pytest.warns(UserWarning, match="left out 1 dry run, in which nothing was measured"):
        assert sources.load([out])[0].records == ()
    said = capsys.readouterr().out
    assert re.search(r"^rank like it  place +layers param\. +params +grads +optim +activ +buffer +all$", said, re.M)
    assert max(len(line) for line in said.splitlines() if str(out) not in line) <= 80
    assert "6 ranks: 4 of them differ" in said and "Fits H100-SXM-80GB" in said
    assert "equal to their closed form" in said


def test_what_does_not_fit_ends_with_status_1(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(out, "--gpu", "V100-SXM2-16GB", "--size", "1x8192x64", "--seq-len", "16") == 1
    assert "Does not fit V100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "H1000"], "GPU 'H1000' is unknown: use one of H100-SXM-80GB"),
        (["--steps", "3"], "--steps with --dry-run, where it changes nothing"),
        (["--compile", "default"], "--dry-run with --compile default"),
        (["--engine", "accelerate", "--layout", "dp2"], "--dry-run with --engine accelerate"),
        (["--layout", "tp3"], "tp=3"),
    ],
)
def test_what_has_no_dry_run_is_one_line(
    words: list[str], said: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry(out, *words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
    assert not out.exists()


def test_a_gpu_is_of_a_dry_run_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--gpu", "H100-SXM-80GB"]) == 2
    assert "without --dry-run" in capsys.readouterr().err


def test_the_table_of_bytes_keeps_names_apart_and_fits() -> None:
    ops = [("dp", "all_reduce"), ("dp_replicate", "all_reduce"), ("dp_shard", "all_gather"),
           ("dp_shard", "reduce_scatter"), ("pp", "send"), ("tp", "all_reduce"), ("world", "all_reduce")]  # fmt: skip
    comm = [SimpleNamespace(axis=axis, op=op, wire_bytes=1 << 30) for axis, op in ops]
    lines = list(_bytes_table([SimpleNamespace(place=SimpleNamespace(rank=0), comm=comm)], "gloo"))  # type: ignore[list-item]
    assert max(map(len, lines)) <= 80
    assert [*lines[1].split(), *lines[5].split()] == [axis for axis, _ in ops]
    assert lines[4].split() == ["0", *["1.00"] * 5] and lines[8].split() == ["0", "1.00", "1.00", "7.00"]
