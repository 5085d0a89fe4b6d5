"""Processes of a program's own in which ranks differ end with one line, and none waits for another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("own_program.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("block", "rank 1 failed first: ConfigError: layers.1 did not run in this step, and under zero2 and zero3"),
        pytest.param(
            "branch",
            "rank 1 failed first: ConfigError: layers.2.up.weight has no gradient in this step",
            marks=pytest.mark.long,
        ),
        ("batches", "rank 1 failed first: it had finished while others still waited for it"),
    ],
)
def test_ranks_that_differ_end_with_one_line(mistake: str, said: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "build" / "import"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "TORCHELASTIC_ERROR_FILE": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(PROGRAM), mistake], capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("paralab: error:")]
    assert done.returncode != 0 and len(lines) == 1 and said in lines[0], done.stderr
