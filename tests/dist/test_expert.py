"""Experts over ranks: what one process computes, the same routing, the bytes that were predicted, any checkpoint."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from paralab.axes.context_parallel.pieces import whole_of
from paralab.axes.data import ddp
from paralab.axes.expert import layers
from paralab.axes.held import state_bytes
from paralab.axes.sent import Sent, predicted_sent
from paralab.layout import Layout
from paralab.measure.ledger import CommLedger
from paralab.measure.routing import Loads, RoutingCounts
from paralab.models.routing import Router
from paralab.models.sequence import Whole
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from tests.dist.cases import ALWAYS, SHALLOW, begun
from tests.dist.test_parity import BITES, LIMITED, check_exactly
from tests.dist.workers import WorkerPool


def config(layout: str, **options: Any) -> RunConfig:
    chosen = {"model": "mixtral", "global_batch_size": 16, "steps": 20, "precision": "fp64", **options}
    return RunConfig(layout=Layout.parse(layout), **SHALLOW["mixtral"] | chosen)


# With each other axis and each stage of ZeRO. Among those always run are a router over cp, and all axes at once.
@pytest.mark.parametrize(
    "layout",
    [
        "dp4.ep2.cp2/zero2",
        "dp4.ep2",
        "dp2.ep2/zero1",
        "dp4.ep2/zero1",
        "dp4.ep2.pp2/zero1/mb2",
        "dp4.ep2/zero3",
        "dp4.ep4/zero3",
        "dp4.ep2.pp2/zero2/mb2",
        "dp4.ep2.pp2/zbv/mb2",
        "dp2.ep2.tp2",
        "dp2.ep2",
        "dp4.ep2.tp2/zero3",
        "dp2.ep2.cp2.pp2/mb2",
        "dp2.ep2.cp2.tp2/zero3",
        "dp4.ep2.cp2/zero1/ulysses",
        "dp2.ep2.tp2.pp2/zero2/mb2",
        pytest.param("dp2.ep2.tp2.pp2/mb2/sp", marks=ALWAYS),  # a router of the gathered sequence
        "dp2.ep2.tp2/zero3/sp",
        "dp8.ep2/zero1/shard4",
        "dp4.ep2.tp2/zero3/shard2",
        "dp8.ep2/zero3/shard4",
        "dp4.ep2.pp2/zero2/shard2/mb2",
        "dp4.ep2/zero1/offload-optimizer",
        "dp4.ep2/zero3/shard2/offload-parameters",
    ],
)
def test_experts_over_ranks(workers: WorkerPool, layout: str) -> None:
    size = LIMITED.replace("2x", "4x", 1) if "zbv" in layout else LIMITED  # which has four stages
    check_exactly(workers, "mixtral", layout, size=size, accumulation=2, **BITES)


def losses_of_local_tokens(patch: pytest.MonkeyPatch) -> None:
    """Have routers compute their losses from the choices of this rank's tokens alone."""
    patch.setattr(Whole, "forward", lambda self, x: x)


def gradients_of_one_holder(patch: pytest.MonkeyPatch) -> None:
    """Have ranks that share an expert not sum its gradient over those that have other positions."""
    patch.setattr(ddp, "sharding_dims", lambda layout, experts: ("edp_data",))


FAULTS = {
    losses_of_local_tokens: "the gradient of blocks.1.mixture.router.score.weight",
    gradients_of_one_holder: "the gradient of blocks.1.mixture.experts.down",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_breaks_it_is_seen(workers: WorkerPool, fault: Callable[..., None]) -> None:
    run = config("dp2.ep2.cp2", size=LIMITED.replace("c0.7", ""), **BITES)
    result = workers.run("tests.dist.cases:parity_with_fault", run, f"{__name__}:{fault.__name__}")[0]
    assert not result.passed and result.grad_norm_difference > 1e-6, result
    assert result.first.startswith(f"first difference: {FAULTS[fault]}"), result.first


def test_blocks_that_are_recomputed_send_their_tokens_again(workers: WorkerPool) -> None:
    check_exactly(workers, "mixtral", "dp4.ep2/zero3", checkpointing="full")


# In the workers


def routed(rank: Rank, run: RunConfig) -> tuple[list[Tensor], Loads] | None:
    """Return the experts (batch, seq, top_k) of each token of this rank in the third step, router by router, and how
    often each is one.
    """
    if (case := begun(rank, run, steps=2)) is None:
        return None
    chosen: list[Tensor] = []
    for part in case.engine.parts:
        for router in (module for module in part.modules() if isinstance(module, Router)):
            router.register_forward_hook(lambda module, inputs, out: chosen.append(out.experts))
    with RoutingCounts(case.engine.parts) as counts:
        case.step()
    return chosen, counts.loads


def counted(rank: Rank, run: RunConfig) -> tuple[Sent, Fraction, int] | None:
    """Count a step: what is sent, what of it are rows for experts of other ranks, and the peak of the states."""
    from paralab.measure.memory import MemoryCensus

    if (case := begun(rank, run, steps=1)) is None:
        return None
    engine, mesh, away = case.engine, case.mesh, 0
    exchanged = layers._exchanged

    def noting(rows: Tensor, sent: list[int], *rest: Any) -> Tensor:
        nonlocal away
        away += (sum(sent) - sent[mesh.rank("ep")]) * rows.shape[1] * rows.element_size()
        return exchanged(rows, sent, *rest)

    with pytest.MonkeyPatch.context() as patch, CommLedger(mesh.groups()) as ledger:
        patch.setattr(layers, "_exchanged", noting)
        case.step()
    with MemoryCensus(engine.parts, engine.optimizers, held=engine.held) as census:
        case.step()
    axes = {row.axis for row in ledger.rows()}
    ring, wire = ({axis: size(axis=axis) for axis in axes} for size in (ledger.ring_bytes, ledger.wire_bytes))
    return Sent(ring, wire), Fraction(away), census.report().state_peak_bytes


# On this side


def test_every_token_goes_where_it_goes_in_one_process(workers: WorkerPool) -> None:
    size = {"size": LIMITED, "learning_rate": 0.01}
    ((alone, loads),) = workers.run("tests.dist.test_expert:routed", config("dp1", **size))[:1]
    for layout in map(Layout.parse, ("dp4.ep2", "dp4.ep4/zero3", "dp2.ep2.cp2", "dp2.ep2.tp2", "dp2.ep2.cp2/ulysses")):
        ranks = workers.run("tests.dist.test_expert:routed", config(str(layout), **size))[: 4 : layout.tp]
        sequences = whole_of(layout, causal=True)
        for router, chosen_alone in enumerate(alone):
            of_ranks = torch.stack([chosen[router] for chosen, _ in ranks]).unflatten(0, (layout.dp, layout.cp))
            assert torch.equal(torch.cat([sequences(every) for every in of_ranks]), chosen_alone)
        assert {name: [sum(x) for x in zip(*(r[name] for _, r in ranks), strict=True)] for name in loads} == loads
    assert all(each[-1] > 0 for each in loads.values())  # some lose their places, and they are the same ones


@pytest.mark.parametrize(
    "layout",
    [
        "dp4.ep2",
        "dp4.ep4",
        "dp4.ep2/zero1",
        "dp4.ep2/zero3",
        "dp4.ep4/zero3",
        "dp4.ep2.pp2/mb2",
        "dp2.ep2.tp2",
        "dp2.ep2.cp2/zero3",
        "dp2.ep2.tp2/zero3",
        pytest.param("dp2.ep2.tp2/zero3/sp", marks=ALWAYS),
        pytest.param("dp8.ep8/zero1", marks=ALWAYS),  # every process there is, as most runs have it
        "dp2.ep2.cp2/zero1",
        "dp8.ep2/zero3/shard4",
        "dp4.ep2/zero3/shard2",
        "dp8.ep2/zero1/shard4",
    ],
)
def test_bytes_and_memory_are_what_was_predicted(workers: WorkerPool, layout: str) -> None:
    run = config(layout, precision="fp32")
    work = resolve(run)
    answers = workers.run("tests.dist.test_expert:counted", run)[: work.layout.world_size]
    size = work.layout.world_size // work.layout.pp
    for pp_rank in range(work.layout.pp):
        ranks = answers[size * pp_rank : size * (pp_rank + 1)]
        want = predicted_sent(work, pp_rank)
        for got, away, _ in ranks:
            assert {axis: size for axis, size in got.wire_bytes.items() if axis != "ep"} == {
                axis: size for axis, size in want.wire_bytes.items() if axis != "ep"
            }
            counts = want.ring_bytes["ep"] - _rows(work, want)
            assert got.wire_bytes["ep"] == away + counts  # what left the rank, whatever the routing
        assert sum(got.ring_bytes["ep"] for got, *_ in ranks) / size == want.ring_bytes["ep"]
        mean = sum(got.wire_bytes["ep"] for got, *_ in ranks) / size
        assert mean == pytest.approx(want.wire_bytes["ep"], rel=0.2)  # that of even loads
    assert max(states for *_, states in answers) == pytest.approx(state_bytes(work).total, rel=0.02)


def _rows(work: Any, want: Sent) -> Fraction:
    """Return the ring bytes of rows: four trips of each choice of a token, in each layer that a pipeline rank has."""
    layers_here = work.model_config.n_layers // work.layout.pp
    tokens = 16 // work.layout.dp * work.model_config.seq_len // work.layout.cp * work.model_config.top_k
    share = Fraction(work.layout.ep - 1, work.layout.ep)
    return 4 * layers_here * tokens * work.model_config.hidden * 4 * share


def test_a_run_goes_on_under_other_degrees(workers: WorkerPool, tmp_path: Path) -> None:
    order = [
        "dp4.ep2",
        "dp4.ep4",
        "dp4.ep2/zero3",
        "dp2.ep2",
        "dp4.ep4/zero3",
        "dp4/zero3",
        "dp4.ep2.pp2/mb2",
        "dp2.ep2.tp2",
        "dp2.ep2.cp2/zero3",
        "dp2.ep2.tp2/zero3",
        "dp8.ep2/zero1/shard4",
        "dp4.ep2/zero3/shard2/offload-parameters",
    ]
    alone = [[config("dp1")], str(tmp_path / "alone"), len(order)]
    whole = workers.run("tests.dist.test_checkpoint:relay", *alone)[0]
    runs = [config(layout) for layout in order]
    losses = workers.run("tests.dist.test_checkpoint:relay", runs, str(tmp_path / "relay"), 1)[0]
    assert losses == pytest.approx(whole, rel=1e-10)
