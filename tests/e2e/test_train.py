"""Training that is stopped under one strategy and goes on under another, as a user types it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paralab.commands.train import main
from paralab.records.log import read_steps
from paralab.records.reading import read

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, "-m", "paralab.cli", "train"]
QUICK = ["--model", "gpt2", "--size", "tiny", "--steps", "400", "--global-batch-size", "8", "--eps", "1e-5"]
QUICK += ["--lr-schedule", "constant"]  # which does not depend on the number of steps


def losses(folder: Path) -> dict[int, float]:
    return {record.step: record.loss for record in read_steps(folder / "log" / "rank0.jsonl")}


def wait_for(text: str, file: Path, *, process: subprocess.Popen, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while text not in file.read_text():
        assert process.poll() is None and time.monotonic() < deadline, file.read_text()
        time.sleep(0.05)


def test_stopped_under_zero3_and_continued_under_tensor(tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    words = [*QUICK, "--eval-samples", "10", "--log-every", "1", "--out", str(out)]
    with said.open("w") as file:
        process = subprocess.Popen([*TRAIN, *words, "--strategy", "zero3", "--nproc", "2"], cwd=REPOSITORY, stdout=file)
        wait_for("step   3/400", said, process=process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=25) == 128 + signal.SIGTERM
    (name,) = [path.name for path in out.glob("step-*")]
    stopped_at = int(name.removeprefix("step-"))
    assert f"stopped by SIGTERM after step {stopped_at}, saved" in said.read_text()

    until = stopped_at + 4
    more = ["--resume", "--out", str(out), "--strategy", "tensor", "--nproc", "2", "--steps", str(until)]
    assert subprocess.run([*TRAIN, *more], cwd=REPOSITORY, timeout=150).returncode == 0
    assert list(losses(out)) == list(range(until))
    assert [(row.status, row.layout) for row in read(out / "runs.csv")] == [("aborted", "dp2/zero3"), ("ok", "tp2")]

    alone = tmp_path / "alone"
    words = [*QUICK, "--eval-samples", "10", "--out", str(alone), "--strategy", "single", "--steps", str(until)]
    assert main(words) == 0
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)
