"""What a fault in one rank of a real run leads to: an end in time, one line, a row, and a checkpoint to go on from."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paralab import checkpoint
from paralab.checkpoint.folder import verify
from paralab.records.log import SplitRecord, read_log
from paralab.records.log_files import log_paths
from paralab.records.reading import read
from paralab.records.row import RunRecord
from tests.e2e.faults import NAP_S, memory_group
from tests.e2e.runner import REPOSITORY, Runner, wait_for_end

QUICK = ["--model", "gpt2", "--size", "tiny", "--global-batch-size", "6", "--strategy", "ddp", "--nproc", "3"]
TRAIN = ["train", *QUICK, "--eval-samples", "6", "--log-every", "1", "--save-every", "3"]
TIMEOUT_S = 4.0
MARGIN_S = 20.0  # for noticing a failure, telling it, and ending; a quarter of it where the machine does nothing else


def ended(runner: Runner, folder: Path, *, within_s: float) -> tuple[int, str, RunRecord]:
    """Return the exit status, the one line and the one row of a run in which a fault happened."""
    status = runner.status()
    took_s = time.time() - float((folder / "happened").read_text())
    assert took_s < within_s
    wait_for_end(folder)
    (line,) = runner.errors()
    (row,) = read(folder / "runs.csv")
    return status, line, row


FAULTS: dict[str, dict[str, Any]] = {
    "stop": {"status": "hang", "reason": "its process is stopped (SIGSTOP), and was ended"},
    "fail": {"reason": "ValueError: sample 17 is not an image"},
    "kill": {"reason": "its process ended without a message, as when it is killed"},
    "fewer_batches": {"reason": "it had fewer batches than the other ranks"},
    "run_on": {"status": "hang", "reason": "it did not answer the others in time (Timed out waiting 4000ms for"},
    "ask_for_memory": {"status": "oom", "reason": "RuntimeError: [enforce fail at alloc_cpu.cpp"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_rank(fault: str, runner: Runner, tmp_path: Path) -> None:
    words = ["--steps", "12", "--timeout-s", str(TIMEOUT_S), "--out", str(tmp_path)]
    runner.begin(*TRAIN, *words, folder=tmp_path, fault=fault)
    expected = {"status": "crash"} | FAULTS[fault]
    status, line, row = ended(runner, tmp_path, within_s=MARGIN_S + TIMEOUT_S * (expected["status"] == "hang"))
    assert status == 1
    assert line.startswith(f"paralab: error: rank 1 failed first at step 7: {expected['reason']}")
    assert (row.status, row.failed_rank, row.failed_step) == (expected["status"], 1, 7)
    assert row.reason is not None and row.reason in line
    good = checkpoint.latest(tmp_path)
    assert good is not None and good.name in ("step-3", "step-6")
    verify(good)


@pytest.fixture
def control_groups() -> Iterator[None]:
    """Skip where no control group can be made; remove those that the test has made."""
    try:
        group = memory_group(f"paralab-test-{os.getpid()}")
    except OSError as error:
        pytest.skip(f"needs the right to make a control group: {error}")
    yield
    for made in group.parent.glob("paralab-test-*"):
        with contextlib.suppress(OSError):  # another session's
            made.rmdir()


def test_a_rank_that_the_kernel_ends_for_want_of_memory(runner: Runner, control_groups: None, tmp_path: Path) -> None:
    runner.begin(*TRAIN, "--steps", "12", "--out", str(tmp_path), folder=tmp_path, fault="use_up_memory")
    status, line, row = ended(runner, tmp_path, within_s=MARGIN_S)
    assert (status, row.status, row.failed_rank, row.failed_step) == (1, "oom", 1, 7)
    assert "its process is gone, and the kernel has ended one for want of memory" in line


@pytest.mark.parametrize(("fault", "call"), [("call_another", "ALLGATHER"), ("give_another_shape", "ALLREDUCE")])
def test_ranks_that_call_different_collectives(fault: str, call: str, runner: Runner, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    words = ["--steps", "12", "--out", str(tmp_path), "--debug-collectives", str(recordings)]
    runner.begin(*TRAIN, *words, folder=tmp_path, fault=fault)
    status, line, row = ended(runner, tmp_path, within_s=MARGIN_S)
    shape = {"call_another": 3, "give_another_shape": 7}[fault]
    assert (status, row.status, row.failed_step) == (1, "crash", 7)
    assert f"rank 1 calls {call} of shape ({shape})" in line
    assert re.search(r"rank [02] calls ALLREDUCE of shape \(\d{4,}\)", line)
    for file in recordings.iterdir():
        names = {entry["profiling_name"] for entry in json.loads(file.read_text())["entries"]}
        assert "gloo:all_reduce" in names
    assert len(list(recordings.iterdir())) == 3


def test_killed_while_saving_and_resumed(runner: Runner, tmp_path: Path) -> None:
    words = ["--steps", "9", "--out", str(tmp_path)]
    runner.begin(*TRAIN, *words, folder=tmp_path, fault="kill_while_saving", when=6)
    status, line, row = ended(runner, tmp_path, within_s=MARGIN_S)
    assert (status, row.status, row.failed_rank) == (1, "crash", 1)
    assert "rank 1 failed first at step" in line
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-3", "step-6.tmp"]
    runner.begin(*TRAIN, *words, "--resume", folder=tmp_path)
    assert runner.status() == 0
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-3", "step-6", "step-9"]


def test_a_disk_that_fills_up_while_one_rank_saves(runner: Runner, tmp_path: Path) -> None:
    runner.begin(*TRAIN, "--steps", "9", "--out", str(tmp_path), folder=tmp_path, fault="fill_disk", when=0)
    assert runner.status() == 2
    (line,) = runner.errors()
    assert "checkpoint step-3 was not saved, there is none yet: rank 1: OSError: [Errno 27] File too large" in line
    (row,) = read(tmp_path / "runs.csv")
    assert row.status == "crash"


def test_a_small_disk_that_is_full(tmp_path: Path) -> None:
    """A disk of 4 MiB of its own: two checkpoints have room, and the end of the run tells of the third."""
    out = tmp_path / "run"
    train = shlex.join([sys.executable, "-m", "paralab.cli", *TRAIN, "--steps", "9", "--out", str(out)])
    mounted = f"mount -t tmpfs -o size=4m none {tmp_path} && {{ {train}; echo ended with $?; ls {out}; }}"
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs unshare and the right to mount")
    done = subprocess.run(
        [*unshare, "sh", "-c", mounted], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True
    )
    status, *names = done.stdout.split("ended with ")[1].splitlines()
    assert (status, [name for name in names if name.startswith("step")]) == ("2", ["step-3", "step-6"])
    (line,) = [line for line in done.stderr.splitlines() if "paralab: error" in line]
    assert re.search(
        r"step-9 was not saved, the last good one is step-6: a checkpoint needs [\d.]+ MiB, .+ are free", line
    )


def test_weights_that_are_not_numbers(runner: Runner, tmp_path: Path) -> None:
    runner.begin(*TRAIN, "--steps", "12", "--out", str(tmp_path), folder=tmp_path, fault="nan")
    status, line, row = ended(runner, tmp_path, within_s=MARGIN_S)
    assert (status, row.status, row.failed_step) == (1, "diverged", 7)
    assert "at step 7, whose batch is samples 42 to 47 of the order of seed 0" in line


def test_a_measured_case_that_is_stopped_leaves_a_row(runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "runs.csv"
    words = ["run", *QUICK, "--steps", "100000", "--no-parity", "--out", str(out)]
    runner.begin(*words, folder=tmp_path, when=5)
    wait_until_it_happens(tmp_path)
    runner.process.send_signal(signal.SIGTERM)
    os.killpg(runner.process.pid, signal.SIGTERM)  # as `timeout` and schedulers do
    assert runner.status() == 128 + signal.SIGTERM
    wait_for_end(tmp_path)
    (row,) = read(out)
    assert (row.status, row.reason) == ("aborted", "stopped by SIGTERM")
    (line,) = runner.errors()
    assert "stopped by SIGTERM" in line


def wait_until_it_happens(folder: Path, *, timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not (folder / "happened").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_rank_without_memory_leaves_what_it_held_and_what_would_take_less(runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = ["run", *QUICK, "--steps", "2", "--warmup", "0", "--no-parity", "--out", str(out)]
    runner.begin(*words, folder=tmp_path / "run", fault="ask_for_memory", when=1)
    assert runner.status() == 1
    (row,) = read(out)
    assert (row.status, row.failed_rank, row.failed_step) == ("oom", 1, 1)
    said = runner.said.read_text()[runner.before :]
    assert "paralab: a step of rank 1 holds up to " in said and "--checkpointing full " in said
    found = json.loads((tmp_path / "rows" / f"{row.run_id}.memory.rank1.json").read_text())
    assert found["rank"] == 1 and found["peak"]["optimizer"] > found["peak"]["parameters"] > 0
    assert all(one["made"] and one["size_bytes"] > 0 for one in found["largest"])
    assert {"--checkpointing full", "--layout dp3/zero3"} <= {change["option"] for change in found["changes"]}


@pytest.mark.parametrize("cause", ["compute", "data"])
def test_a_slow_rank_is_named_with_what_it_is_slow_in(runner: Runner, tmp_path: Path, cause: str) -> None:
    out = tmp_path / "rows.csv"
    words = ["run", *QUICK, "--steps", "1", "--warmup", "0", "--no-parity", "--out", str(out)]
    runner.begin(*words, folder=tmp_path / "run", fault=f"slow_{cause}", when=1)
    assert runner.status() == 0, runner.said.read_text()
    (row,) = read(out)
    assert (row.slowest_rank, row.slowest_cause) == (1, cause)
    assert row.slowest_step in (1, 2, 3) and row.slowest_behind_s == pytest.approx(NAP_S, rel=0.5)
    parts_s = json.loads(row.step_parts_json or "{}")
    assert parts_s[cause] > 0.9 * NAP_S > sum(s for part, s in parts_s.items() if part != cause)
    splits = [row for path in log_paths(out, row.run_id) for row in read_log(path) if isinstance(row, SplitRecord)]
    assert {split.rank for split in splits if split.exposed_s > 0.5 * NAP_S} == {0, 2}  # they wait for it


def test_no_rank_outlives_a_launcher_that_is_killed(runner: Runner, tmp_path: Path) -> None:
    runner.begin(*TRAIN, "--steps", "100000", "--out", str(tmp_path), folder=tmp_path)
    wait_until_it_happens(tmp_path)
    runner.process.kill()
    runner.process.wait(timeout=10)
    wait_for_end(tmp_path)
    (row,) = read(tmp_path / "runs.csv")
    assert (row.status, row.reason) == ("aborted", "stopped by SIGTERM")
    good = checkpoint.latest(tmp_path)
    assert good is not None and int(good.name.removeprefix("step-")) >= 7, "the work was saved"
    verify(good)
