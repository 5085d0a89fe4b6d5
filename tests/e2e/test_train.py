"""Training that is stopped under one strategy and goes on under another, as a user types it."""

import signal
import time
from pathlib import Path

import pytest

from paralab.commands.train import main
from paralab.records.log import read_steps
from paralab.records.reading import read
from tests.e2e.runner import Runner

QUICK = ["--model", "gpt2", "--size", "tiny", "--steps", "400", "--global-batch-size", "8", "--eps", "1e-5"]
QUICK += ["--lr-schedule", "constant"]  # which does not depend on the number of steps


def losses(folder: Path) -> dict[int, float]:
    return {record.step: record.loss for record in read_steps(folder / "log" / "rank0.jsonl")}


def test_stopped_under_zero3_and_continued_under_tensor(runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*QUICK, "--eval-samples", "10", "--log-every", "1", "--out", str(out)]
    runner.begin("train", *words, "--strategy", "zero3", "--nproc", "2", folder=tmp_path, when=3)
    deadline_s = time.monotonic() + 90
    while not (tmp_path / "happened").exists():
        assert runner.process.poll() is None and time.monotonic() < deadline_s, runner.errors()
        time.sleep(0.05)
    runner.process.send_signal(signal.SIGTERM)
    assert runner.status() == 128 + signal.SIGTERM
    (name,) = [path.name for path in out.glob("step-*")]
    stopped_at = int(name.removeprefix("step-"))
    assert f"stopped by SIGTERM after step {stopped_at}, saved" in runner.printed

    until = stopped_at + 4
    more = ["--resume", "--out", str(out), "--strategy", "tensor", "--nproc", "2", "--steps", str(until)]
    assert runner.run("train", *more, folder=tmp_path) == 0, runner.errors()
    assert list(losses(out)) == list(range(until))
    assert [(row.status, row.layout) for row in read(out / "runs.csv")] == [("aborted", "dp2/zero3"), ("ok", "tp2")]

    alone = tmp_path / "alone"
    words = [*QUICK, "--eval-samples", "10", "--out", str(alone), "--strategy", "single", "--steps", str(until)]
    assert main(words) == 0
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)
