"""The single-process engine against a loop written by hand with torch's own parts: it is what parity is measured by."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from paralab.axes.initialise import initialise
from paralab.axes.optimizer import learning_rate, make_optimizer, make_pieces, share_of_rows
from paralab.data.dataset import Batch
from paralab.engines import native
from paralab.engines.native import LossScale, row_norms
from paralab.layout import Layout
from paralab.models.gpt2 import GPT2, GPT2Config
from paralab.options.choices import OptimizerName
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh

ALONE = Mesh(Layout(), torch.device("cpu"))
STEPS = 4


def work_of(**options: Any) -> Work:
    return resolve(RunConfig(**{"size": "tiny", "nproc": 1, "global_batch_size": 8, "steps": STEPS, **options}))


def batches_of(work: Work) -> Iterator[Batch]:
    return islice(training_batches(work, ALONE), STEPS)


def by_hand(work: Work) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Train GPT-2 the way a user would write it: logits, cross_entropy, clip_grad_norm_, a torch optimizer."""
    run = work.run
    model = GPT2(cast(GPT2Config, work.model_config)).double()
    initialise(model, spec=work.spec, config=work.model_config, seed=run.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if run.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=run.learning_rate, momentum=run.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=run.learning_rate, betas=run.betas, eps=run.eps)
    total = run.steps + run.warmup
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, run.learning_rate * run.min_lr_ratio)
    losses, norms = [], []
    for batch in batches_of(work):
        loss = F.cross_entropy(model(*batch.inputs).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        cosine.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, dict(model.named_parameters())


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"eps": 1e-5},
        {"eps": 1e-5, "weight_decay": 0.0, "betas": (0.8, 0.99)},
        {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.05},
        {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": None, "momentum": 0.0},
    ],
    ids=str,
)
def test_one_process_is_the_loop_written_by_hand(options: dict[str, Any], accumulation: int) -> None:
    work = work_of(precision="fp64", accumulation=accumulation, **options)
    engine = native.build(work.context(ALONE))
    results = [engine.step(batch) for batch in batches_of(work)]
    losses, norms, parameters = by_hand(work)
    assert_close([r.loss.item() for r in results], losses, rtol=1e-12, atol=0)
    assert_close([r.grad_norm.item() for r in results], norms, rtol=1e-12, atol=0)
    assert losses[-1] < losses[0]
    for name, parameter in engine.parameters():
        assert_close(parameter, parameters[name], rtol=1e-9, atol=1e-9, msg=partial("{}: {}".format, name))


def test_biases_and_norms_do_not_decay() -> None:
    pieces = make_pieces([torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 2, 2, 2)])
    groups = make_optimizer(pieces, RunConfig(weight_decay=0.3)).param_groups
    decay = {p.ndim: group["weight_decay"] for group in groups for p in group["params"]}
    assert decay == {1: 0.0, 2: 0.3, 4: 0.3}


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_cosine_is_that_of_torch(ratio: float) -> None:
    run = RunConfig(steps=17, warmup=3, learning_rate=0.5, min_lr_ratio=ratio)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, 0.5 * ratio)
    for step in range(20):
        assert learning_rate(run, step) == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert learning_rate(run, 1000) == pytest.approx(0.5 * ratio)


def test_warm_up_is_linear_and_cosine_begins_at_the_peak() -> None:
    run = RunConfig(steps=20, warmup=0, lr_warmup_steps=5, learning_rate=1.0)
    assert [learning_rate(run, step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert learning_rate(run, 5) == 1.0
    assert learning_rate(run, 20) == pytest.approx(run.min_lr_ratio)
    constant = RunConfig(lr_schedule="constant", lr_warmup_steps=2, learning_rate=1.0)
    assert [learning_rate(constant, step) for step in (0, 1, 2, 500)] == [0.5, 1.0, 1.0, 1.0]


@given(st.integers(0, 50), st.integers(1, 9))
def test_the_shares_of_all_ranks_are_the_rows_once(rows: int, ranks: int) -> None:
    shares = [range(rows)[share_of_rows(rows, rank=rank, ranks=ranks)] for rank in range(ranks)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) <= -(-rows // ranks)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_updating_by_shares_is_updating_the_whole(optimizer: OptimizerName) -> None:
    run = RunConfig(optimizer=optimizer)
    shapes = [(5, 3), (4,), (1, 2), (7,)]
    generator = torch.Generator().manual_seed(0)
    values, grads = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))

    def updated(ranks: int) -> list[Tensor]:
        parameters = [torch.nn.Parameter(value.clone()) for value in values]
        for rank in range(ranks):
            pieces = make_pieces(parameters, rank=rank, ranks=ranks)
            step = make_optimizer(pieces, run)
            for _ in range(2):
                for piece, grad in zip(pieces, grads, strict=True):
                    piece.updated.grad = piece.of(grad).clone()
                step.step()
        return [parameter.detach() for parameter in parameters]

    for whole, shared in zip(updated(1), updated(3), strict=True):
        assert_close(shared, whole, rtol=1e-6, atol=1e-7)
        assert not any(torch.equal(whole, value) for value in values)


def test_the_loss_scale_moves_as_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 3)
    ours, theirs = LossScale(enabled=True), torch.amp.GradScaler("cpu", growth_interval=3)
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for finite in [True, True, False, True, True, True, True, False, False, True, True, True]:
        theirs.scale(parameter.sum())
        parameter.grad = torch.tensor([1.0 if finite else float("inf")])
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite=finite)
        assert ours.value == theirs.get_scale()
    for _ in range(40):
        ours.update(finite=False)
    assert ours.value == 1.0  # below it gradients would only lose digits


def test_fp16_skips_a_step_that_overflows_and_goes_on() -> None:
    engine, wide = (
        native.build(work_of(precision=precision, optimizer="sgd", clip_norm=0.5).context(ALONE))
        for precision in ("fp16", "fp32")
    )
    engine.loss_scale.value = scale = 2.0**100
    before = {name: p.detach().clone() for name, p in engine.parameters()}
    first, second = islice(batches_of(work_of()), 2)
    engine.step(first)
    assert engine.loss_scale.value == scale / 2
    assert all(torch.equal(p, before[name]) for name, p in engine.parameters())
    engine.loss_scale.value, wide.steps_done = 2.0**10, engine.steps_done  # whose learning rate is the next one
    engine.loss_scale.good_steps = LossScale.GROWTH_STEPS - 1  # the scale grows in this step, after its gradients
    norms = [each.step(second).grad_norm.item() for each in (engine, wide)]
    assert norms[0] == pytest.approx(norms[1], rel=0.01) and norms[0] > 0.5  # so that it is clipped
    moved = [sum((p - before[name]).square().sum().item() for name, p in each.parameters()) for each in (engine, wide)]
    assert moved[0] == pytest.approx(moved[1], rel=0.02) and moved[0] > 0


def test_copies_on_the_host_begin_at_values_that_were_given() -> None:
    engines = [native.build(work_of(layout=Layout.parse(x)).context(ALONE)) for x in ("dp1", "dp1/offload-optimizer")]
    values = {name: torch.full(x.shape, 0.5) for name, x in engines[0].parts[0].state_dict().items()}
    for engine in engines:
        engine.set_values(values.__getitem__)
        engine.step(next(batches_of(work_of())))
    for (name, plain), (_, copied) in zip(*(engine.parameters() for engine in engines), strict=True):
        assert_close(copied, plain, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("shape", [(5,), (300, 200), (1000, 4100)])
def test_the_norm_of_large_gradients_keeps_its_digits(shape: tuple[int, ...]) -> None:
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    norm = torch.linalg.vector_norm(row_norms(grad)).item()
    assert norm == pytest.approx(grad.double().norm().item(), rel=1e-6)
