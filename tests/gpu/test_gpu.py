"""The same parity results on a GPU: one device against the CPU, several against one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from paralab.layout import Layout
from paralab.models import SPECS
from paralab.models.cross_entropy import LinearCrossEntropy
from paralab.options.config import RunConfig
from paralab.parity.prove import prove
from paralab.parity.reference import reference
from paralab.parity.result import ParityResult
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.records.log import read_steps
from paralab.records.reading import read
from tests.tiny import TINY

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and ./launch.sh test -m gpu"),
]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def parity_result(**options: Any) -> ParityResult:
    """Train on the first GPU and compare with one process on the CPU."""
    work: Work = resolve(RunConfig(**{"nproc": 1, "global_batch_size": 16, "steps": 20, **options}))
    want = reference(work, Mesh(Layout(), torch.device("cpu")))
    return prove(work, Mesh(Layout(), torch.device("cuda", 0)), want)


@pytest.mark.parametrize("model", TINY)
def test_the_gpu_computes_what_the_cpu_does(model: str) -> None:
    result = parity_result(**TINY[model] | {"precision": "fp64"})
    assert result.passed, result


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["gpt2", "llama", "dit"])
def test_low_precision(model: str, precision: str) -> None:
    result = parity_result(**TINY[model], precision=precision)
    assert result.passed, result
    assert result.grad_norm_difference > 1e-6, "this was no lower precision"


@pytest.mark.parametrize(
    "options",
    [
        {"compile": "default"},
        {"compile": "reduce-overhead"},
        {"compile": "default", "accumulation": 2},
        {"checkpointing": "full"},
        {"accumulation": 2},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    result = parity_result(**TINY["gpt2"], precision="fp64", **options)
    assert result.passed, result


IMAGES = TINY["resnet"] | {"precision": "fp64", "channels_last": True}


@pytest.mark.parametrize(
    "copies",
    [{}, {"pin_memory": False, "non_blocking": False}, {"loader_workers": 1}],
    ids=["pinned", "pageable", "worker"],
)
def test_batches_arrive_whole(copies: dict[str, Any]) -> None:
    result = parity_result(**IMAGES, **copies)
    assert result.passed, result


def test_batches_that_are_cast_on_the_gpu() -> None:
    result = parity_result(**IMAGES, cast_on_device=True)
    # pixels become fp32 there, by a division that may differ in the last bit
    assert result.loss_difference < 1e-8 and result.grad_norm_difference < 1e-7, result
    assert result.parameter_difference < 3e-4, result


def test_the_loss_scales_its_gradients() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(64, 32, device="cuda", generator=generator, requires_grad=True)
    targets = torch.randint(100, (64,), device="cuda", generator=generator)
    head = LinearCrossEntropy(hidden=32, vocab_size=100, padded_vocab=128).cuda()
    torch.nn.init.normal_(head.weight)
    (head(x, targets) * 3).backward()
    want_x, want_weight = torch.autograd.grad(
        3 * F.cross_entropy(F.linear(x, head.weight[:100]), targets), (x, head.weight)
    )
    assert_close(x.grad, want_x, rtol=1e-4, atol=1e-6)
    assert_close(head.weight.grad, want_weight, rtol=1e-4, atol=1e-6)


def paralab(*words: object, **environment: str) -> subprocess.CompletedProcess:
    """Type a command."""
    return subprocess.run(
        [sys.executable, "-m", "paralab.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | environment,
    )


def test_a_row_tells_what_the_gpu_did(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    # long enough for the sampler, which looks ten times a second
    done = paralab("run", "--nproc", 1, "--precision", "bf16", "--steps", 200, "--out", out)
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.status, row.parity, row.device, row.strategy) == ("ok", True, "cuda", "single")
    assert row.gpu_name == torch.cuda.get_device_name(0)
    assert row.mfu is not None and 0 < row.mfu < 1
    used = (row.memory_tensors_peak_bytes, row.gpu_allocated_peak_bytes, row.gpu_reserved_peak_bytes)
    assert None not in used and sorted(used) == list(used)
    assert row.gpu_utilisation_max_share and row.gpu_power_mean_w and row.energy_j and row.driver_version


def test_what_does_not_fit_leaves_a_row(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    batch = 1 << 16
    done = paralab("run", "--nproc", 1, "--size", "124M", "--global-batch-size", batch, "--no-parity", "--out", out)
    assert done.returncode == 1 and "out of memory" in done.stderr
    (row,) = read(out)
    assert row.status == "oom"


def test_more_processes_than_gpus_run_on_the_cpu_when_asked_to(tmp_path: Path) -> None:
    nproc, out = torch.cuda.device_count() + 1, tmp_path / "rows.csv"
    words = ("run", "--strategy", "ddp", "--nproc", nproc, "--size", "tiny", "--global-batch-size", 4 * nproc)
    refused = paralab(*words, "--out", out)
    assert refused.returncode == 2 and "CUDA_VISIBLE_DEVICES=" in refused.stderr and not out.exists()
    done = paralab(*words, "--out", out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.device, row.backend, row.world_size, row.parity) == ("cpu", "gloo", nproc, True)


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = ("train", "--size", "tiny", "--nproc", 1, "--global-batch-size", 8, "--lr-schedule", "constant")
    for steps, out, more in [(6, "whole", []), (3, "parts", []), (6, "parts", ["--resume"])]:
        done = paralab(*words, "--steps", steps, "--log-every", 1, "--out", tmp_path / out, *more)
        assert done.returncode == 0, done.stderr
    whole, parts = (
        {record.step: record.loss for record in read_steps(tmp_path / out / "log" / "rank0.jsonl")}
        for out in ("whole", "parts")
    )
    assert list(whole) == list(parts) == list(range(6))
    assert parts == pytest.approx(whole, rel=1e-6)


@several
@pytest.mark.parametrize("model", list(SPECS))
def test_every_strategy_on_all_gpus(model: str) -> None:
    nproc = 2 ** (torch.cuda.device_count().bit_length() - 1)
    done = paralab("verify", "--model", model, "--nproc", nproc, "--precision", "fp64")
    assert done.returncode == 0, done.stdout + done.stderr


@several
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["deepspeed", "accelerate"])
def test_engines(engine: str, precision: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = ("run", "--strategy", "ddp", "--nproc", 2, "--size", "tiny", "--steps", 2, "--precision", precision)
    done = paralab(*words, "--engine", engine, "--out", out)
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.engine, row.device, row.parity) == (engine, "cuda", True)


@pytest.mark.parametrize("engine", ["torch", "deepspeed", "accelerate"])
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_a_strategy_of_the_data_axis_on_one_gpu(strategy: str, engine: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    words = ["--strategy", strategy, "--nproc", "1", "--engine", engine, "--size", "tiny", "--steps", "4"]
    command = [sys.executable, "benchmarks/run.py", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=180)
    assert done.returncode == 0, done.stderr
    (row,) = read(out)
    assert (row.strategy, row.engine, row.world_size, row.device, row.parity) == (strategy, engine, 1, "cuda", True)
