"""`benchmarks/run.py` under its launchers, as a user types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from paralab.axes.axis import Software
from paralab.planning.measured import device as measured
from paralab.records.log import MemoryRecord, read_log
from paralab.records.log_files import log_paths
from paralab.records.reading import read
from tests.e2e.runner import REPOSITORY, Runner

QUICK = ["--size", "tiny", "--steps", "6", "--warmup", "1"]


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([*words], capture_output=True, text=True, timeout=280, cwd=REPOSITORY, env=env)


def test_plain_python_starts_its_own_processes(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    done = run(sys.executable, "benchmarks/run.py", "--strategy", "zero3", "--nproc", "2", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.status, row.strategy, row.world_size, row.layout) == ("ok", "zero3", 2, "dp2/zero3")
    assert row.parity and row.loss_difference_max <= 1e-5
    assert row.step_time_p50_s > 0 and row.tokens_per_s > 0
    # two all-gathers and a reduce-scatter of the parameters, padded rows counted, over two ranks: half of each; gloo
    # sends the last one twice
    assert row.comm_dp_ring_bytes == pytest.approx(3 * 4 * row.parameters / 2, rel=0.15)
    assert row.comm_dp_sent_bytes == pytest.approx(4 * 4 * row.parameters / 2, rel=0.15)
    assert row.memory_optimizer_bytes == pytest.approx(8 * row.parameters / 2, rel=0.05)
    held = [
        record for path in log_paths(out, row.run_id) for record in read_log(path) if isinstance(record, MemoryRecord)
    ]
    assert [record.rank for record in held] == [0, 1]
    assert max(record.optimizer_bytes for record in held) == row.memory_optimizer_bytes
    assert max(record.process_peak_bytes for record in held) == row.process_peak_bytes
    assert 0 < row.exposed_comm_share < 1 <= row.straggler_ratio and row.slowest_rank in (0, 1)
    assert (row.hfu, row.compile_s) == (row.mfu, 0.0)
    assert row.gpu_power_mean_w is None


def test_one_process_where_two_were_asked_for(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = run(*torchrun, "benchmarks/run.py", "--layout", "dp2", *QUICK, "--out", str(tmp_path / "rows.csv"))
    assert done.returncode != 0
    assert "torchrun started 1 process(es), 2 needed: type torchrun --nproc-per-node 2" in done.stderr


def test_a_rank_that_does_not_come_leaves_a_row(tmp_path: Path) -> None:
    """Rank 0 of two under a launcher that starts no other."""
    out = tmp_path / "rows.csv"
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's part of a start
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    where = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    words = ["--strategy", "ddp", *QUICK, "--timeout-s", "1", "--out", str(out)]
    done = run(sys.executable, "benchmarks/run.py", *words, env=os.environ | torchrun | where)
    assert done.returncode == 2
    (row,) = read(out)
    assert (row.status, row.failed_rank, row.failed_step) == ("crash", None, None)
    assert row.reason is not None and row.reason.startswith("1 of 2 ranks joined, waiting for rank 1")
    assert done.stderr.count("paralab: error") == 1


def test_a_run_that_diverges_leaves_a_row(runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = ["run", "--strategy", "ddp", "--nproc", "2", *QUICK, "--learning-rate", "1e38", "--no-parity"]
    assert runner.run(*words, "--out", str(out), folder=tmp_path) == 1
    (row,) = read(out)
    assert row.status == "diverged" and row.failed_rank in (0, 1) and row.failed_step is not None
    assert len(runner.errors()) == 1


@pytest.mark.parametrize("command", ["tour", pytest.param("verify", marks=pytest.mark.long)])
def test_torchrun_starts_commands_of_several_cases(command: str, tmp_path: Path) -> None:
    """They take its number of processes, and what is printed is printed once."""
    program = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "paralab.cli"]
    words = [*program, command, "--model", "gpt2", "--size", "2x32x4v257", "--seq-len", "16"]
    if command == "tour":
        words += ["--steps", "1", "--warmup", "0", "--out", str(tmp_path / "tour.csv")]
    else:
        words += ["--strategy", "ddp"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^strategy +layout", done.stdout, re.MULTILINE)) == 1
    assert done.stdout.count("passed\nNot covered" if command == "verify" else "compute what one process computes") == 1
    if command == "tour":
        rows = read(tmp_path / "tour.csv")
        assert {row.launcher for row in rows} == {"torchrun"} and {row.world_size for row in rows} == {1, 2}
        assert {(row.strategy, row.pp, row.schedule) for row in rows} >= {("pipeline", 2, "1f1b"), ("ddp", 1, None)}


def test_a_device_is_measured_and_planned_for(tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    words = ("calibrate", "--seconds", "2", "--processes", "2", "--out", str(out))
    done = run(sys.executable, "-m", "paralab.cli", *words)
    assert done.returncode == 0, done.stderr
    device = measured.read(out)
    assert device.kind == "cpu" and {sent.ranks for sent in device.all_reduces} == {2} and device.messages
    assert device.software.keys() == set(Software) and device.software[Software.PIPELINE_STAGE] > 1e-5
    for rates in device.rates:
        assert {"product float32", "convolution_backward float32", "attention float32"} <= rates.operations.keys()
        assert min(len(samples) for samples in rates.operations.values()) >= 1
    assert "GFLOP/s" in done.stdout and max(map(len, done.stdout.splitlines()[:20])) <= 80
    assert "all-reduces and messages" in done.stderr
