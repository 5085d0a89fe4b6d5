"""Each launcher with each file of ds_configs/accelerate, started as docs/launchers.md says for a CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SCRIPT = "tests/e2e/certify.py"
SHIPPED = {
    "ddp": ("ddp", "AccelerateEngine"),
    "fsdp2": ("zero3", "AccelerateEngine"),
    "deepspeed_zero1": ("zero1", "PluginEngine"),
    "deepspeed_zero2": ("zero2", "PluginEngine"),
    "deepspeed_zero3": ("zero3", "PluginEngine"),
}


def started(*command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a command in a session of its own and wait; a launcher that hangs is ended with all it started."""
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def report(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_every_file_is_run() -> None:
    assert {path.stem for path in (ROOT / "ds_configs" / "accelerate").glob("*.yaml")} == SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_launch(name: str) -> None:
    strategy, built = SHIPPED[name]
    config = f"ds_configs/accelerate/{name}.yaml"
    launch = ("launch", "--config_file", config, "--num_processes", "2", "--main_process_port", free_port())
    got = report(started("accelerate", *launch, SCRIPT, strategy, "auto"))
    want = {"launcher": "accelerate", "world_size": 2, "engine": "accelerate", "built": built}
    assert got == want | {"certificate": "passed"}


def test_deepspeed_launch() -> None:
    launch = ("--num_gpus", "2", "--master_port", free_port())
    got = report(started("deepspeed", *launch, SCRIPT, "zero3", "auto", "--ds-config", "ds_configs/zero3.json"))
    want = {"launcher": "deepspeed", "world_size": 2, "engine": "deepspeed", "built": "ZeroEngine"}
    assert got == want | {"certificate": "passed"}


def test_torchrun_starts_deepspeed() -> None:
    launch = ("--nproc-per-node", "2", "--master-port", free_port())
    got = report(started("torchrun", *launch, SCRIPT, "zero2", "auto", "--ds-config", "ds_configs/zero2.json"))
    want = {"launcher": "torchrun", "world_size": 2, "engine": "deepspeed", "built": "ZeroEngine"}
    assert got == want | {"certificate": "passed"}


def test_accelerate_that_starts_one_process_is_not_taken_for_two() -> None:
    done = started("accelerate", "launch", "--cpu", "--num_processes", "2", SCRIPT, "ddp", "auto")
    assert done.returncode != 0
    assert "ddp needs 2 processes or more" in done.stderr
