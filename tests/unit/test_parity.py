"""What a certificate is held to, and that it fails for one parameter that was not updated."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import SPECS
from parallel import parity
from parallel.cluster import Mesh
from parallel.config import RunConfig
from parallel.parity import Trace
from parallel.resolve import Work, resolve


def work_of(model: str = "gpt2", **options: Any) -> Work:
    run = RunConfig(model=model, size=SPECS[model].tiny_size, global_batch_size=8, steps=20, **options)
    return resolve(run)


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
def test_one_parameter_left_alone_is_seen(precision: str) -> None:
    work = work_of(strategy="single", precision=precision)
    mesh = Mesh(work.layout, torch.device("cpu"))
    want = parity.reference(work, mesh)
    start = {name: p.detach().clone() for name, p in parity.trace(work, mesh, steps=0)[0].parameters()}
    engine, got = parity.trace(work, mesh, steps=parity.STEPS)
    assert parity.certify(engine, got, want, work, mesh).passed
    for name, parameter in engine.parameters():
        trained = parameter.detach().clone()
        with torch.no_grad():
            parameter.copy_(start[name])
        certificate = parity.certify(engine, got, want, work, mesh)
        assert not certificate.passed and certificate.worst_parameter == name, name
        with torch.no_grad():
            parameter.copy_(trained)


@pytest.mark.parametrize("field", ["losses", "grad_norms"])
def test_a_loss_or_norm_that_is_off_is_seen(field: str) -> None:
    work = work_of(strategy="single")
    mesh = Mesh(work.layout, torch.device("cpu"))
    engine, got = parity.trace(work, mesh, steps=1)
    want = replace(parity.reference(work, mesh, steps=1), **{field: [1.0001 * x for x in getattr(got, field)]})
    assert not parity.certify(engine, got, want, work, mesh).passed


@pytest.mark.parametrize("worst_rank", range(4))
def test_the_worst_parameter_of_all_ranks_counts(worst_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(layout="dp4", learning_rate=0.5)
    gathered = [(0.125 * (1 + (rank == worst_rank)), f"of rank {rank}") for rank in range(4)]
    monkeypatch.setattr(parity, "_parameter_difference", lambda engine, want, work: gathered[0])
    monkeypatch.setattr(
        parity.dist, "all_gather_object", lambda got, mine, group: got.__setitem__(slice(None), gathered)
    )
    mesh: Any = SimpleNamespace(world=object())
    certificate = parity.certify(Any, Trace([2.0, 3.0], [4.0]), Trace([2.0, 2.0], [5.0]), work, mesh)  # type: ignore
    assert (certificate.parameter_difference, certificate.worst_parameter) == (0.25 / 0.5, f"of rank {worst_rank}")
    assert (certificate.loss_difference, certificate.grad_norm_difference) == (1.0 / 2.0, 1.0 / 5.0)


@pytest.mark.parametrize(
    ("model", "options", "precision"),
    [
        ("resnet", {"layout": "dp2"}, "fp64"),
        ("resnet", {"layout": "dp2", "engine": "accelerate"}, "fp64"),
        ("resnet", {"layout": "dp2", "engine": "deepspeed"}, "fp32"),
        ("resnet", {"layout": "dp2/zero1", "engine": "accelerate"}, "fp32"),  # by DeepSpeed
        ("resnet", {"layout": "dp2", "precision": "bf16"}, "bf16"),
        ("gpt2", {"layout": "dp2"}, "fp32"),
    ],
)
def test_models_with_kinks_are_judged_in_fp64_where_the_engine_can(
    model: str, options: dict[str, Any], precision: str
) -> None:
    assert parity.judged(work_of(model, **options)).run.precision == precision


def test_only_the_norm_of_other_engines_is_judged_less_strictly() -> None:
    ours, theirs = (parity.tolerance(work_of(layout="dp2", engine=engine)) for engine in ("torch", "deepspeed"))
    assert (ours.loss, ours.parameters) == (theirs.loss, theirs.parameters)
    assert ours.grad_norm == 1e-5 < theirs.grad_norm == 1e-3
