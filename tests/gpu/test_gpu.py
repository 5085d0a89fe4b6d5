"""The same certificates on a GPU: one device against the CPU, several against one."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from models.cross_entropy import LinearCrossEntropy
from parallel import parity
from parallel.cluster import Mesh
from parallel.config import RunConfig
from parallel.layout import Layout
from parallel.resolve import Work, resolve

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"model": "gpt2", "size": "tiny"},
    "resnet": {"model": "resnet", "size": "tiny"},
    "points": {"model": "diffusion", "size": "tiny-points"},
    "dit": {"model": "diffusion", "size": "tiny-dit"},
}


def certificate(**options: Any) -> parity.Certificate:
    """Train on the first GPU and compare with one process on the CPU."""
    work: Work = resolve(RunConfig(**{"nproc": 1, "global_batch_size": 16, "steps": 20, **options}))
    want = parity.reference(work, Mesh(Layout(), torch.device("cpu")))
    return parity.prove(work, Mesh(Layout(), torch.device("cuda", 0)), want)


@pytest.mark.parametrize("model", MODELS)
def test_the_gpu_computes_what_the_cpu_does(model: str) -> None:
    result = certificate(**MODELS[model], precision="fp64")
    assert result.passed, result


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["gpt2", "dit"])
def test_low_precision(model: str, precision: str) -> None:
    result = certificate(**MODELS[model], precision=precision)
    assert result.passed, result
    assert result.grad_norm_difference > 1e-6, "this was no lower precision"


@pytest.mark.parametrize(
    "options",
    [{"compile": "default"}, {"compile": "reduce-overhead"}, {"checkpointing": "full"}, {"accumulation": 2}],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    result = certificate(**MODELS["gpt2"], precision="fp64", **options)
    assert result.passed, result


@pytest.mark.parametrize(
    "copies", [{}, {"pin_memory": True, "non_blocking": True, "loader_workers": 1, "cast_on_device": True}], ids=str
)
def test_batches_arrive_whole(copies: dict[str, Any]) -> None:
    result = certificate(**MODELS["resnet"], precision="fp64", channels_last=True, **copies)
    assert result.passed, result


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


@several
@pytest.mark.parametrize("model", ["gpt2", "resnet", "diffusion"])
def test_every_strategy_on_all_gpus(model: str) -> None:
    nproc = str(2 ** (torch.cuda.device_count().bit_length() - 1))
    words = ["verify", "--model", model, "--nproc", nproc, "--precision", "fp64"]
    done = subprocess.run(
        [sys.executable, "-m", "parallel.cli", *words], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
