"""Every layout starts from the weights of a folder, each rank with its own piece of them."""

from pathlib import Path

import pytest
import torch

from paralab.axes.initialise import initialise
from paralab.engines import native
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from paralab.weights.hugging_face import to_hugging_face
from paralab.weights.start_from import start_from
from tests.dist.workers import WorkerPool


def loss(rank: Rank, run: RunConfig, folder: str) -> float | None:
    """Start from a folder; return the loss of the first step."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    engine = native.build(work.context(mesh))
    start_from(engine, folder)
    return engine.step(next(training_batches(work, mesh))).loss.item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights than a run with seed 0 has."""
    spec = SPECS["gpt2"]
    config = spec.config("tiny")
    model = spec.build(config)
    initialise(model, spec=spec, config=config, seed=7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    path = tmp_path_factory.mktemp("weights")
    to_hugging_face(path, model.state_dict(), spec=spec, config=config)
    return path


@pytest.mark.parametrize("layout", ["dp2/zero1", "dp3/zero3", "tp2.pp2/mb2"])
def test_first_loss_is_that_of_one_process(workers: WorkerPool, folder: Path, layout: str) -> None:
    def losses(layout: str) -> list[float]:
        run = RunConfig(model="gpt2", size="tiny", layout=Layout.parse(layout), global_batch_size=12)
        got = workers.run("tests.dist.test_start_from:loss", run, str(folder))
        return [x for x in got if x is not None]

    (alone,) = losses("dp1")
    assert losses(layout) == pytest.approx([alone] * Layout.parse(layout).world_size, rel=1e-5)
