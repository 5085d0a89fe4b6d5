"""When a rank fails, all end soon, and one line names the rank that failed first, its step and its error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paralab.records.reading import read
from tests.e2e.runner import REPOSITORY, Runner, wait_for_end

LAUNCH = ("launch", "3")  # of tests.e2e.faults: so many ranks, and a task


@pytest.mark.parametrize("who", [0, 2])
def test_the_rank_that_raises_is_named_and_nobody_else(runner: Runner, tmp_path: Path, who: int) -> None:
    assert runner.run(*LAUNCH, "raise_at", str(who), "7", folder=tmp_path) == 1
    assert runner.errors() == [f"paralab: error: rank {who} failed first at step 7: ValueError: the batch is empty"]


def test_a_killed_rank_is_named(runner: Runner, tmp_path: Path) -> None:
    assert runner.run(*LAUNCH, "die_at", "1", "5", folder=tmp_path) == 1
    (line,) = runner.errors()
    assert line.startswith("paralab: error: rank 1 failed first at step 5: its process ended without a message")


def test_no_process_is_left(runner: Runner, tmp_path: Path) -> None:
    assert runner.run(*LAUNCH, "pid", str(tmp_path), folder=tmp_path) == 1
    (line,) = runner.errors()
    assert "rank 0 failed first: MemoryError: no room" in line
    assert len(list(tmp_path.glob("pid*"))) == 3
    wait_for_end(tmp_path)


# Ctrl-C once a process has its task, and the launcher does not know of the process yet
INTERRUPTED = """
import os, signal, sys
from multiprocessing.popen_forkserver import Popen
from paralab import cli

launch = Popen._launch

def interrupted(self, process):
    launch(self, process)
    if process.name.endswith("-1"):
        os.killpg(0, signal.SIGINT)

Popen._launch = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("program", "after_s"),
    [
        (["-m", "paralab.cli"], 0.2),  # after the first line: in an import, which may swallow it
        (["-c", INTERRUPTED], None),
    ],
    ids=["import", "start"],
)
def test_ctrl_c_while_processes_start_is_one_line(tmp_path: Path, program: list[str], after_s: float | None) -> None:
    """From the terminal it comes to all processes of the group at once."""
    words = ["run", "--strategy", "ddp", "--nproc", "2", "--size", "tiny", "--steps", "100000", "--no-parity"]
    process = subprocess.Popen(
        [sys.executable, *program, *words, "--out", str(tmp_path / "rows.csv")],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("running ")
    if after_s is not None:
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    ended = [line for line in said.splitlines() if not line.startswith("[")]  # after the phases it was in
    assert (process.returncode, ended) == (130, ["paralab: interrupted"])
    with pytest.raises(ProcessLookupError):  # what ranks are forked from ends by itself
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_tasks_of_slurm_meet_without_an_address(tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"}
    nodes = {"SLURM_STEP_NODELIST": "nowhere[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2"}
    words = ["--strategy", "ddp", "--size", "tiny", "--steps", "2", "--no-parity", "--out", str(tmp_path / "rows.csv")]
    command = [sys.executable, "benchmarks/run.py", *words]
    tasks = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | step | nodes | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    said = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    (row,) = read(tmp_path / "rows.csv")
    assert (row.launcher, row.world_size, row.status) == ("slurm", 2, "ok")
