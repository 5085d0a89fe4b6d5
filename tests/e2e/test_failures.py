"""When a rank fails, all end soon, and one line names the rank that failed first, its step and its error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paralab.records.reading import read

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from paralab.cli import main
import paralab.cli as cli

def run(argv):
    from paralab.processes.launch import launch
    launch(argv[0], *[int(x) if x.isdigit() else x for x in argv[2:]], nproc=int(argv[1]))
    return 0

if __name__ == "__main__":
    cli.TARGETS["test"] = "__main__:run"
    sys.exit(main(["test", *sys.argv[1:]]))
"""


def launch(tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    script = tmp_path / "start.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=120, env=environment
    )


@pytest.mark.parametrize("who", [0, 2])
def test_the_rank_that_raises_is_named_and_nobody_else(tmp_path: Path, who: int) -> None:
    done = launch(tmp_path, "tests.e2e.tasks:raise_at", "3", str(who), "7")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("paralab: error")]
    assert lines == [f"paralab: error: rank {who} failed first at step 7: ValueError: the batch is empty"]
    assert "Traceback" not in done.stderr


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    done = launch(tmp_path, "tests.e2e.tasks:die_at", "3", "1", "5")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("paralab: error")]
    assert len(lines) == 1
    assert lines[0].startswith("paralab: error: rank 1 failed first at step 5: its process ended without a message")
    assert "Traceback" not in done.stderr


def test_no_process_is_left(tmp_path: Path) -> None:
    done = launch(tmp_path, "tests.e2e.tasks:pid", "3", str(tmp_path))
    assert "rank 0 failed first: MemoryError: no room" in done.stderr
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(3)]
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


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
        (["-m", "paralab.cli"], 0.8),  # in an import, which may swallow it
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
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
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
