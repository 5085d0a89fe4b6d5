"""Experts over ranks: what one process computes, the same routing, the bytes that were predicted, any checkpoint."""

from typing import Any

import pytest

from paralab.engines import native
from paralab.layout import Layout
from paralab.measure.routing import Loads, RoutingCounts
from paralab.models.routing import Router
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes import cluster
from paralab.processes.cluster import Rank
from tests.dist.cases import SHALLOW
from tests.dist.test_parity import BITES, LIMITED, check_exactly
from tests.dist.workers import WorkerPool


def config(layout: str, **options: Any) -> RunConfig:
    chosen = {"model": "mixtral", "global_batch_size": 16, "steps": 20, "precision": "fp64", **options}
    return RunConfig(layout=Layout.parse(layout), **SHALLOW["mixtral"] | chosen)


@pytest.mark.parametrize(
    "layout",
    ["dp2.ep2", "dp4.ep2", "dp4.ep2/zero3", "dp4.ep4/zero3", "dp4.ep2.pp2/zero2/mb2", "dp4.ep2.pp2/zbv/mb2"],
)
def test_experts_over_ranks(workers: WorkerPool, layout: str) -> None:
    size = LIMITED.replace("2x", "4x", 1) if "zbv" in layout else LIMITED  # which has four stages
    check_exactly(workers, "mixtral", layout, size=size, accumulation=2, **BITES)


def test_blocks_that_are_recomputed_send_their_tokens_again(workers: WorkerPool) -> None:
    check_exactly(workers, "mixtral", "dp4.ep2/zero3", checkpointing="full")


# In the workers


def routed(rank: Rank, run: RunConfig) -> tuple[list[list[int]], Loads] | None:
    """Return the experts of each token of this rank in the third step, router by router, and how often each is one."""
    work = resolve(run)
    mesh = cluster.make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    engine = native.build(work.context(mesh))
    batches = training_batches(work, mesh)
    for _ in range(2):
        engine.step(next(batches))
    chosen: list[list[int]] = []
    for part in engine.parts:
        for router in (module for module in part.modules() if isinstance(module, Router)):
            router.register_forward_hook(lambda module, inputs, out: chosen.append(out.experts.flatten().tolist()))
    with RoutingCounts(engine.parts) as counts:
        engine.step(next(batches))
    return chosen, counts.loads


# On this side


def test_every_token_goes_where_it_goes_in_one_process(workers: WorkerPool) -> None:
    size = {"size": LIMITED, "learning_rate": 0.01}
    ((alone, loads),) = workers.run("tests.dist.test_expert:routed", config("dp1", **size))[:1]
    for layout in ("dp4.ep2", "dp4.ep4/zero3"):
        ranks = workers.run("tests.dist.test_expert:routed", config(layout, **size))[:4]
        together = [[expert for chosen, _ in ranks for expert in chosen[router]] for router in range(len(alone))]
        assert together == alone
        assert {name: [sum(x) for x in zip(*(r[name] for _, r in ranks), strict=True)] for name in loads} == loads
    assert all(each[-1] > 0 for each in loads.values())  # some lose their places, and they are the same ones
