"""What is shown of a training run or a sweep is what its files say, at every moment of it."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from paralab.benchmarks.watch import screen
from paralab.benchmarks.watch.screen import curve
from paralab.benchmarks.watch.sweep import SweepFiles
from paralab.benchmarks.watch.training import TrainingFiles
from paralab.benchmarks.watch.watch import main
from paralab.console.clock import Moment
from paralab.console.lines import duration
from paralab.errors import DataError
from paralab.records.log import MemoryRecord, StepLog, StepRecord
from paralab.records.sweep_progress import SweepProgress, progress_path
from paralab.records.writing import append
from paralab.training.goodput import Pulse
from paralab.training.lock import FILE, FolderLock
from paralab.training.options import log_file, rows_file, usage_file
from tests.unit.synthetic_runs import run

CONFIG = 'model = "gpt2"\nsize = "nano"\nlayout = "dp2"\nsteps = 40\nwarmup = 2\nglobal_batch_size = 16\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training run of two ranks after ten steps, of which eight are in the logs."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    pulse = Pulse(folder, launch=None, began=Moment.now(), processes=2, step=0, goes_on=False)
    for rank in (0, 1):
        log = StepLog(log_file(folder, rank))
        for step in range(8):
            log.write(StepRecord(step=step, loss=5.0 - step / 2, step_time_s=0.5, data_wait_s=0.1 * rank, samples=16))
        log.close()
        usage = StepLog(usage_file(folder, rank))
        usage.write(MemoryRecord(rank=rank, process_peak_bytes=50 * 2**20))
        on_gpu = 300 * 2**20 if rank else None
        usage.write(MemoryRecord(rank=rank, process_peak_bytes=100 * 2**20, device_peak_bytes=on_gpu))
        usage.close()
    for step in range(10):
        pulse.step_done(step + 1)
    (folder / "validation.jsonl").write_text('{"step": 8, "loss": 4.25}\n')
    return folder


@pytest.fixture
def locked(folder: Path) -> Iterator[Path]:
    with FolderLock(folder):
        yield folder


def test_a_training_that_goes_on(locked: Path) -> None:
    view = TrainingFiles(locked).look()
    assert (view.status, view.done, view.total, view.is_over) == ("training", 10, 42, False)
    assert view.losses[0] == (1, 5.0) and view.losses[-1] == (8, 1.5)
    assert view.validation == [(8, 4.25)]
    assert (view.step_time_s, view.samples_per_s, view.left_s) == (0.5, 32.0, 16.0)
    assert [rank.memory_bytes for rank in view.ranks] == [100 * 2**20, 300 * 2**20], "the last peak, of a GPU if known"
    assert [rank.data_share for rank in view.ranks] == [0.0, pytest.approx(0.2)]


def test_a_later_look_has_what_was_written_since(locked: Path) -> None:
    files = TrainingFiles(locked)
    files.look()
    log = StepLog(log_file(locked, 0))
    for step in range(8, 28):
        log.write(StepRecord(step=step, loss=1.0, step_time_s=0.25))
    log.close()
    view = files.look()
    assert (view.losses[-1], view.done, view.step_time_s) == ((28, 1.0), 28, 0.25), "as fast as the last twenty steps"


def test_a_training_whose_process_is_gone_has_stopped(folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (folder / FILE).write_text(json.dumps({"host": socket.gethostname(), "process": gone.pid}))
    view = TrainingFiles(folder).look()
    assert view.status == "stopped" and "--resume" in view.reason and view.is_over


def test_a_training_on_another_machine_goes_on_as_long_as_it_writes(folder: Path) -> None:
    (folder / FILE).write_text(json.dumps({"host": "elsewhere", "process": 1}))
    assert TrainingFiles(folder).look().status == "training"
    for path in (log_file(folder, 0), log_file(folder, 1), folder / FILE):
        assert TrainingFiles(folder).look().status == "training", "it has just been taken"
        os.utime(path, (time.time() - 3600,) * 2)
    assert TrainingFiles(folder).look().status == "stopped"


def test_a_failure_is_said_with_its_reason(folder: Path) -> None:
    append(rows_file(folder), run(status="diverged", reason="loss nan at step 9"))
    view = TrainingFiles(folder).look()
    assert (view.status, view.reason) == ("diverged", "loss nan at step 9")


def test_ranks_that_a_smaller_start_no_longer_has_are_not_shown(folder: Path) -> None:
    Pulse(folder, launch=None, began=Moment.now(), processes=1, step=8, goes_on=True)
    assert [rank.rank for rank in TrainingFiles(folder).look().ranks] == [0]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A sweep of two cases of which three runs are done, and one failed."""
    file = tmp_path / "bench.csv"
    for number, (strategy, status, step_s) in enumerate(
        [("ddp", "ok", 0.02512), ("zero3", "hang", None), ("ddp", "ok", 0.08574)]
    ):
        layout = "dp2" if strategy == "ddp" else "dp2/zero3"
        cells = {"strategy": strategy, "layout": layout, "status": status, "step_time_p50_s": step_s}
        append(file, run(number, group="g", **cells))
    return file


def sweep(done: int, now: str | None) -> SweepProgress:
    return SweepProgress(group="g", done=done, total=8, taken=2, now=now, began_s=time.time() - 60)


def test_a_sweep_that_goes_on(rows: Path) -> None:
    sweep(3, "gpt2 zero3 x2, repeat 2 of 4").write(rows)
    log = StepLog(rows.with_suffix("") / "other.rank0.jsonl")
    log.write(StepRecord(step=0, loss=1.0))
    log.close()
    earlier = StepLog(rows.with_suffix("") / "earlier.rank0.jsonl")
    earlier.close()
    os.utime(rows.with_suffix("") / "earlier.rank0.jsonl", (time.time() - 60,) * 2)
    files = SweepFiles(rows)
    view = files.look()
    assert (view.status, view.done, view.total, view.now_step) == ("running", 3, 8, 1)
    assert view.left_s == pytest.approx(150, abs=20)  # two runs in a minute, five to go
    ((ddp, zero3),) = view.works.values()
    assert (ddp.runs, ddp.failed, ddp.step_times_s) == (2, 0, [0.02512, 0.08574])
    assert (zero3.runs, zero3.failed, zero3.last) == (1, 1, "hang")
    append(rows, run(3, group="g", strategy="ddp", layout="dp2", parity=False))
    append(rows, run(4, group="g", strategy="zero3", layout="dp2/zero3", parity=True))
    ((ddp, zero3),) = files.look().works.values()
    assert (ddp.runs, ddp.failed, ddp.last, zero3.last) == (3, 1, "parity failed", "ok")
    with rows.open("a") as file:
        file.write("28,half a row")
    with warnings.catch_warnings(action="error"):  # a row that is being written is not said
        assert [way.runs for ways in files.look().works.values() for way in ways] == [3, 2]
    values = json.loads(progress_path(rows).read_text())
    progress_path(rows).write_text(json.dumps(values | {"host": "elsewhere", "process": 2**22 + 1}))
    assert files.look().status == "running", "who runs it cannot be seen from here"


def test_a_sweep_that_has_ended_and_one_whose_process_is_gone(rows: Path) -> None:
    sweep(8, None).write(rows)
    assert SweepFiles(rows).look().status == "ended"
    sweep(3, "gpt2").write(rows)
    values = json.loads(progress_path(rows).read_text())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    progress_path(rows).write_text(json.dumps(values | {"process": gone.pid}))
    view = SweepFiles(rows).look()
    assert view.status.startswith("interrupted") and view.is_over and not view.now


@pytest.mark.parametrize("content", ["", "{", "[]", '{"group": "g"}', '{"done": "three"}'])
def test_progress_that_cannot_be_read_leaves_the_rows(rows: Path, content: str) -> None:
    progress_path(rows).parent.mkdir()
    progress_path(rows).write_text(content)
    assert SweepFiles(rows).look().done == 3


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_run_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "none.csv"
    with pytest.raises(DataError, match="give the folder"):
        main([str(path)])


def test_one_view_is_printed_where_there_is_no_terminal(
    locked: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main([str(locked)]) == 0 and main([str(rows)]) == 0
    shown = capsys.readouterr().out
    assert "10 of 42 steps, about 16 s left" in shown and "gpt2 nano, dp2, 16 samples a step" in shown
    assert ["0", "8", "500", "ms", "0.0%", "100", "MiB"] in [line.split()[:7] for line in shown.splitlines()]
    (ddp,) = (line.split() for line in shown.splitlines() if line.split()[:1] == ["ddp"])
    assert ddp == ["ddp", "2", "0", "55.4", "ms", "25.1–85.7", "ms", "80.0", "ok"] and "zero3" in shown
    assert max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_view_fits_the_terminal_and_cuts_nothing(locked: Path, rows: Path, columns: int) -> None:
    sweep(3, "gpt2 zero3 x2, repeat 2 of 4").write(rows)
    log = StepLog(log_file(locked, 0))
    for step in range(8, 200):
        log.write(StepRecord(step=step, loss=5.0 - step / 50, step_time_s=0.5, data_wait_s=0.0, samples=16))
    log.close()
    console = Console(width=columns, color_system=None, file=io.StringIO())
    for view in (screen.training(TrainingFiles(locked).look()), screen.sweep(SweepFiles(rows).look())):
        with console.capture() as capture:
            console.print(view)
        lines = capture.get().splitlines()
        assert max(map(len, lines)) <= columns and "…" not in "".join(lines)
        assert any(re.search(r" (last|written)$", line.rstrip()) for line in lines), "the last column is whole"
        assert any(re.search(" left$", line.rstrip()) and "━" in line for line in lines), "how far it is, on one line"
    with console.capture() as capture:
        console.print(screen.training(TrainingFiles(locked).look()))
    drawn = [line.rstrip() for line in capture.get().splitlines() if "│" in line or "└" in line]
    assert len(drawn) == 9 and max(map(len, drawn)) == min(columns, 71), "each line of the curve on one line"


def test_a_curve_has_its_largest_number_at_the_top_and_its_smallest_at_the_bottom() -> None:
    lines = curve([(step, 8.0 - step) for step in range(8)], width=8, height=8)
    drawn = [line.partition("│")[2] for line in lines[:8]]
    assert lines[0].split()[0] == "8" and lines[7].split()[0] == "1"
    assert drawn[0][0] == "█" and drawn[0][1:].strip() == ""
    assert [sum(row[column] != " " for row in drawn) for column in range(8)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert curve([(0, float("nan"))]) == ["no finite number yet"]
    lines = curve([(step, float(step % 2)) for step in range(8)] + [(8, 3.5), (9, 4.5)], width=5, height=2)
    assert [lines[0].split()[0], lines[1].split()[0]] == ["4", "0.5"], "a column is the mean of its steps"


@pytest.mark.parametrize(("seconds", "said"), [(59.4, "59 s"), (60, "1 min 0 s"), (3600 * 3 + 60 * 25, "3 h 25 min")])
def test_a_duration_has_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said
