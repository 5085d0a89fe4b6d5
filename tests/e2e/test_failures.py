"""When a rank fails, all end soon, and one line names the rank that failed first, its step and its error."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from parallel.cli import main
import parallel.cli as cli

def run(argv):
    from parallel.launch import launch
    launch(argv[0], *[int(x) if x.isdigit() else x for x in argv[2:]], nproc=int(argv[1]))
    return 0

if __name__ == "__main__":
    cli.COMMANDS["test"] = ("", "__main__:run")
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
    assert lines[0].startswith("paralab: error: rank 1 failed first at step 5: its process is gone without a word")
    assert "Traceback" not in done.stderr


def test_no_process_is_left(tmp_path: Path) -> None:
    done = launch(tmp_path, "tests.e2e.tasks:pid", "3", str(tmp_path))
    assert "rank 0 failed first: MemoryError: no room" in done.stderr
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(3)]
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
