"""Held-out loss and accuracy are those of one process, whatever the layout and however the samples divide."""

from typing import Any

import pytest
import torch

from paralab.engines import native
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from paralab.training.evaluate import Evaluator, Validation
from tests.dist.workers import WorkerPool

SAMPLES = 21  # with 16 a batch: the last one divides by nothing, and leaves some data ranks without any
GPT2 = {"model": "gpt2", "size": "tiny"}
RESNET: dict[str, Any] = {"model": "resnet", "size": "tiny", "norm": "syncbatch"}
VICREG = {"model": "vicreg", "size": "tiny"}
POINTS = {"model": "diffusion", "size": "tiny-points"}


def evaluate(rank: Rank, run: RunConfig) -> tuple[Validation, Validation, float] | None:
    """Evaluate after one step and, twice in a row, after another; return both results and the next training loss."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    engine = native.build(work.context(mesh))
    evaluator = Evaluator(work, engine, most_samples=SAMPLES)
    batches = training_batches(work, mesh)
    engine.step(next(batches))
    first = evaluator()
    engine.step(next(batches))
    second = evaluator()
    assert evaluator() == second
    assert all(isinstance(p, torch.distributed.tensor.DTensor) for _, p in engine.parameters()) or work.layout.zero < 2
    return first, second, engine.step(next(batches)).loss.item()


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[Validation, Validation, float]]:
    """What one process gives, by model."""
    return {}


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        *((GPT2, layout) for layout in ("dp2", "dp8/zero3", "dp4/zero1", "tp2", "dp2.tp2/zero2/sp", "pp2/naive")),
        *((GPT2, layout) for layout in ("pp4/interleaved/mb4", "pp2/zbv/mb4", "dp2.tp2.pp2/zero1/dualpipev/mb4")),
        *((GPT2, layout) for layout in ("dp2.pp2/zero3/1f1b/mb2", "tp2.pp2/1f1b/mb2/sp")),
        *((GPT2, layout) for layout in ("dp2.cp2/zero3", "cp2.pp2/mb2/ulysses")),
        *((RESNET, layout) for layout in ("dp4/zero3", "tp2", "pp2/gpipe", "dp2.pp2/zbv")),
        *((VICREG, layout) for layout in ("dp4/zero3", "dp2.tp2")),
        *((POINTS, layout) for layout in ("dp4", "pp2/zero-bubble/mb2")),
    ],
    ids=lambda value: value if isinstance(value, str) else value["model"],
)
def test_every_layout_gives_what_one_process_gives(
    workers: WorkerPool, alone: dict[str, Any], model: dict[str, Any], layout: str
) -> None:
    def run(layout: str) -> tuple[Validation, Validation, float]:
        config = RunConfig(layout=Layout.parse(layout), global_batch_size=16, precision="fp64", eps=1e-5, **model)
        return workers.run("tests.dist.test_evaluate:evaluate", config)[0]

    name = model["model"]
    want = alone.get(name) or alone.setdefault(name, run("dp1"))
    for got, expected in zip(run(layout)[:2], want[:2], strict=True):
        assert got.samples == (16 if model is VICREG else SAMPLES)  # whole batches
        assert got.loss == pytest.approx(expected.loss, rel=1e-9)
        assert got.accuracy == expected.accuracy
        assert (got.bits_per_byte is None) == (model is not GPT2)


def test_the_loss_is_the_mean_over_the_samples(workers: WorkerPool) -> None:
    """Against the plain model and a plain mean."""
    run = RunConfig(layout=Layout.parse("dp2"), global_batch_size=16, precision="fp64", **RESNET)
    got, want = workers.run("tests.dist.test_evaluate:evaluate_plainly", run)[0]
    assert (got.loss, got.accuracy) == pytest.approx(want, rel=1e-9)


def evaluate_plainly(rank: Rank, run: RunConfig) -> tuple[Validation, tuple[float, float]] | None:
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    engine = native.build(work.context(mesh))
    engine.step(next(training_batches(work, mesh)))
    got = Evaluator(work, engine, most_samples=SAMPLES)()
    (model,) = engine.parts
    images, labels = work.dataset("validation").samples.load(range(SAMPLES))  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = model.eval()(images.double())
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return got, (loss.item(), (logits.argmax(1) == labels).double().mean().item())
