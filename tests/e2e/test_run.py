"""`benchmarks/run.py` under its launchers, as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest

from parallel.measure.record import read

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = ["--size", "tiny", "--steps", "6", "--warmup", "1"]


def run(*words: str, timeout_s: float = 180) -> subprocess.CompletedProcess:
    return subprocess.run([*words], capture_output=True, text=True, timeout=timeout_s, cwd=REPOSITORY)


def test_plain_python_starts_its_own_processes(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    done = run(sys.executable, "benchmarks/run.py", "--strategy", "zero3", "--nproc", "2", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.status, row.strategy, row.world_size, row.layout) == ("ok", "zero3", 2, "dp2/zero3")
    assert row.parity and row.loss_difference_max <= 1e-5
    assert row.step_time_p50_s > 0 and row.tokens_per_s > 0
    # two all-gathers and a reduce-scatter of the parameters, padded rows counted, over two ranks: half of each
    assert row.comm_dp_wire_bytes == pytest.approx(3 * 4 * row.parameters / 2, rel=0.15)
    assert row.memory_optimizer_bytes == pytest.approx(8 * row.parameters / 2, rel=0.05)
    assert 0 < row.exposed_comm_share < 1 <= row.straggler_ratio <= 2  # the median of two ranks is their mean
    assert (row.hfu, row.compile_s) == (row.mfu, 0.0)
    assert row.gpu_power_mean_w is None


def test_torchrun(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run(*torchrun, "benchmarks/run.py", "--layout", "pp2/1f1b/mb4", *QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.launcher, row.strategy, row.pp, row.schedule) == ("torchrun", "pipeline", 2, "1f1b")


def test_one_process_where_two_were_asked_for(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = run(*torchrun, "benchmarks/run.py", "--layout", "dp2", *QUICK, "--out", str(tmp_path / "rows.csv"))
    assert done.returncode != 0
    assert "torchrun started 1 process(es), 2 needed: type torchrun --nproc-per-node 2" in done.stderr


def test_a_run_that_diverges_leaves_a_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = ["--strategy", "ddp", "--nproc", "2", *QUICK, "--learning-rate", "1e38", "--no-parity", "--out", str(out)]
    done = run(sys.executable, "benchmarks/run.py", *words)
    assert done.returncode == 1
    (row,) = read(out)
    assert row.status == "diverged" and row.failed_rank in (0, 1) and row.failed_step is not None
    assert done.stderr.count("paralab: error") == 1
