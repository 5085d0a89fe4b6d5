"""Each launcher with each file of ds_configs/accelerate, started as docs/launchers.md says for a CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from paralab.records.reading import read

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SCRIPT = "tests/e2e/prove_engine.py"
SHIPPED = {
    "ddp": ("ddp", "AccelerateEngine"),
    "deepspeed_zero1": ("zero1", "PluginEngine"),
    "deepspeed_zero2": ("zero2", "PluginEngine"),
    "deepspeed_zero3": ("zero3", "PluginEngine"),
    "fsdp2": ("zero3", "AccelerateEngine"),
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
    assert got == want | {"parity": "passed"}


def test_deepspeed_launch() -> None:
    launch = ("--num_gpus", "2", "--master_port", free_port())
    got = report(started("deepspeed", *launch, SCRIPT, "zero3", "auto", "--ds-config", "ds_configs/zero3.json"))
    want = {"launcher": "deepspeed", "world_size": 2, "engine": "deepspeed", "built": "ZeroEngine"}
    assert got == want | {"parity": "passed"}


@pytest.mark.long
def test_torchrun_starts_deepspeed() -> None:
    launch = ("--nproc-per-node", "2", "--master-port", free_port())
    got = report(started("torchrun", *launch, SCRIPT, "zero2", "auto", "--ds-config", "ds_configs/zero2.json"))
    want = {"launcher": "torchrun", "world_size": 2, "engine": "deepspeed", "built": "ZeroEngine"}
    assert got == want | {"parity": "passed"}


@pytest.mark.parametrize(
    ("line", "strategy", "stage", "layout"),
    [
        ("deepspeed benchmarks/run.py --strategy zero3", "zero3", 3, "dp1/zero3"),
        ("accelerate launch benchmarks/run.py --strategy ddp", "ddp", 0, "dp1"),
    ],
)
def test_a_launcher_that_starts_one_process_gets_one(
    tmp_path: Path, line: str, strategy: str, stage: int, layout: str
) -> None:
    """As everyone types it, with a smaller model, on a machine without GPUs."""
    out = tmp_path / "rows.csv"
    done = started(*line.split(), "--size", "tiny", "--steps", "3", "--warmup", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    (row,) = read(out)
    launcher = line.split()[0]
    assert (row.strategy_requested, row.strategy, row.layout, row.zero) == (strategy, strategy, layout, stage)
    assert (row.launcher, row.engine, row.world_size, row.parity) == (launcher, launcher, 1, True)
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("paralab:")]
    assert told.startswith(f"paralab: {strategy} over 1 process: nothing is divided; for more: ")
    assert f"{launcher} " in told and " 4 benchmarks/run.py ..." in told


def test_one_process_of_a_launcher_is_not_taken_for_the_four_asked_for(tmp_path: Path) -> None:
    words = ["--strategy", "zero3", "--nproc", "4", "--size", "tiny", "--out", str(tmp_path / "rows.csv")]
    done = started("accelerate", "launch", "benchmarks/run.py", *words)
    assert done.returncode != 0
    assert "accelerate started 1 process(es), 4 needed: type ACCELERATE_USE_CPU=true accelerate launch" in done.stderr
