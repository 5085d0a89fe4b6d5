"""Root mean squares of parameters, gradients and updates are those of one process, under every layout."""

import pytest
import torch

from paralab.engines import native
from paralab.engines.layers import LayerStats
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from tests.dist.cases import SHALLOW
from tests.dist.workers import WorkerPool
from tests.tiny import TINY

Measured = list[dict[str, list[float]]]  # by step and full name: of weights, gradients, updates
MODELS = {name: options | SHALLOW.get(name, {}) for name, options in TINY.items()}


def layer_stats(rank: Rank, run: RunConfig) -> Measured | None:
    """Return what is measured in the first and the third step; ranks outside the layout return None."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    engine = native.build(work.context(mesh))
    batches, stats = training_batches(work, mesh), LayerStats(engine)
    found = []
    for step in range(3):
        if step == 1:
            engine.step(next(batches))
            continue
        with stats.of_a_step():
            norm = engine.step(next(batches)).grad_norm
        rms = stats.read()
        found.append(dict(zip(rms.names, rms.values.T.tolist(), strict=True)))
        squares = (rms.values[1].square() * torch.tensor(rms.numels)).sum()
        assert squares.sqrt().item() == pytest.approx(norm.item(), rel=1e-6), "they add up to the gradient norm"
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Measured]:
    """What one process gives, by model."""
    return {}


CASES = [
    *(("gpt2", layout) for layout in ("dp2", "dp3/zero1", "dp8/zero3", "dp4/zero2/shard2", "tp2/sp", "dp2.cp2/zero3")),
    *(("gpt2", layout) for layout in ("pp2/zbv/mb2", "pp4/1f1b/mb4", "dp2.tp2.pp2/zero1/mb2", "dp2.tp2.pp2/zero3/mb2")),
    *(("mixtral", layout) for layout in ("dp4.ep2/zero3", "dp2.tp2/zero1")),
    *(("resnet", layout) for layout in ("dp4/zero1/shard2", "dp2.tp2/zero3", "pp2/naive")),
    *(("dit", layout) for layout in ("dp2.pp2/zero3/mb2",)),
]


@pytest.mark.parametrize(("model", "layout"), CASES, ids=lambda value: value)
def test_every_layout_measures_what_one_process_does(
    workers: WorkerPool, alone: dict[str, Measured], model: str, layout: str
) -> None:
    def run(layout: str) -> list[Measured]:
        options = {"layout": Layout.parse(layout), "global_batch_size": 24, **MODELS[model], "precision": "fp64"}
        found = workers.run("tests.dist.test_layer_stats:layer_stats", RunConfig(**options))
        return [measured for measured in found if measured is not None]

    (want,) = [alone[model]] if model in alone else run("dp1")
    alone[model] = want
    ranks = run(layout)
    assert all(found == ranks[0] for found in ranks), "equal on every rank"
    for got, expected in zip(ranks[0], want, strict=True):
        assert list(got) == list(expected), "full names, in the order of one process"
        for name in expected:
            assert got[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-12), name
        assert all(weight > 0 or name.endswith("bias") for name, (weight, _, _) in expected.items())
        assert sum(update > 0 for _, _, update in expected.values()) > 0.8 * len(expected)
