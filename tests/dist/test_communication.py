"""What a step sends is what was predicted, to the byte, on every rank of every layout."""

from typing import Any

import pytest

from paralab.axes.data.ranks import replicas
from paralab.axes.sent import Sent, predicted_sent, predicted_transfers
from paralab.layout import Layout
from paralab.measure.ledger import CommLedger
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from tests.dist.cases import ALWAYS, SHALLOW, begun
from tests.dist.workers import WorkerPool
from tests.tiny import TINY, divides


def counted(rank: Rank, run: RunConfig) -> Sent | None:
    """Count one step, after those in which shapes and DDP's buckets settle; ranks outside the layout return None."""
    layout = resolve(run).layout
    settling = 2 if replicas(layout) > 1 and layout.zero < 2 else 1
    if (case := begun(rank, run, steps=layout.local or settling)) is None:
        return None
    period = layout.local or 1
    with CommLedger(case.mesh.groups(), steps=period) as ledger:
        for _ in range(period):
            case.step()
    axes = {row.axis for row in ledger.rows()}
    return Sent(
        {axis: ledger.ring_bytes(axis=axis) for axis in axes}, {axis: ledger.wire_bytes(axis=axis) for axis in axes}
    )


def check(workers: WorkerPool, model: str, layout: str, **changes: Any) -> None:
    options = TINY[model] | SHALLOW.get(model, {}) | changes
    run = RunConfig(**options, layout=Layout.parse(layout), global_batch_size=16)
    check_run(workers, run)


def check_run(workers: WorkerPool, run: RunConfig) -> None:
    work = resolve(run)
    predicted = [predicted_sent(work, pp_rank, backend="gloo") for pp_rank in range(work.layout.pp)]
    everywhere = [
        predicted[pp_rank] for pp_rank in range(work.layout.pp) for _ in range(work.layout.world_size // work.layout.pp)
    ]
    answers = workers.run("tests.dist.test_communication:counted", run)
    assert answers[: work.layout.world_size] == everywhere
    assert sum(everywhere[0].ring_bytes.values()) > 0


@pytest.mark.parametrize(
    "layout",
    [
        "dp2",
        "dp2/zero1",
        "dp2/zero2",
        "dp4/zero3",
        pytest.param("dp4/zero1/shard2", marks=ALWAYS),  # over which ranks rows are shared
        "dp4/zero2/shard2",
        "dp8/zero3/shard4",
        "tp2",
        "tp2/sp",
        "tp4/sp",
        "pp2/naive",
        "pp2/gpipe/mb2",
        "pp2/1f1b/mb4",
        "pp2/interleaved/mb4",
        "pp2/zero-bubblex1/mb4",
        "pp2/zbv/mb4",
        "pp2/dualpipev/mb4",
        "pp4/1f1b/mb4",
        "pp2/1f1b/mb4/first3",
        "tp2.pp2/mb4",
        "tp2.pp2/zbv/mb2/sp",
        "dp2.tp2",
        "dp2.tp2/zero1/sp",
        "dp2.tp2/zero3/sp",
        "dp2.pp2/zero2/mb2",
        "dp2.tp2.pp2/mb2",
        "dp2.tp2.pp2/zero1/mb2",
        "dp2.tp2.pp2/zero3/zero-bubble/mb2/sp",
        "dp4.tp2/zero3/shard2/sp",
        pytest.param("dp4.pp2/zero3/shard2/mb2", marks=ALWAYS),  # what is gathered once
    ],
)
def test_gpt2(workers: WorkerPool, layout: str) -> None:
    check(workers, "gpt2", layout)


@pytest.mark.parametrize(
    "layout",
    [
        "dp2",
        "dp2/zero2",
        "dp2/zero3",
        pytest.param("dp4.tp2/zero3/shard2/sp", marks=ALWAYS),  # what is put off, between groups and of norms
        "tp2/sp",
        "dp2.tp2/zero3/sp",
        "pp2/naive",
        "pp2/mb2",
        pytest.param("dp2.pp2/zero2/naive", marks=ALWAYS),  # micro-batches that pass one at a time
        "dp4.pp2/zero2/shard2/naive",
    ],
)
def test_accumulation(workers: WorkerPool, layout: str) -> None:
    check(workers, "gpt2", layout, accumulation=2)


OTHERS = [name for name in TINY if name != "gpt2"]
ALONE = ["dp2", "dp4/zero1", "dp2/zero3", "dp4/zero3/shard2", "tp2", "pp2/mb2", "pp2/zbv/mb4"]
TOGETHER = ["dp2.tp2.pp2/mb2", "dp2.tp2.pp2/zero3/zero-bubble/mb2"]


@pytest.mark.parametrize(
    ("layout", "model"),
    [
        (layout, model)
        for i, layout in enumerate(ALONE + TOGETHER)
        for j, model in enumerate(OTHERS)
        if (layout in TOGETHER or (i + j) % 2 == 0)  # each model with every second of the axes alone
        and divides(Layout.parse(layout), model)
    ],
)
def test_other_models(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout)


@pytest.mark.parametrize("layout", ["dp2", "dp4/zero3"])
def test_a_model_without_blocks(workers: WorkerPool, layout: str) -> None:
    check_run(workers, RunConfig(model="logistic", size="7", layout=Layout.parse(layout), global_batch_size=16))


@pytest.mark.parametrize("model", ["gpt2", "resnet", "dit"])
@pytest.mark.parametrize("layout", ["dp2", "tp2", "dp2/zero3", "tp2.pp2/mb2"])
def test_recomputed_blocks_send_again(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout, checkpointing="2")


def test_what_is_recomputed_for_each_layer_is_not_predicted() -> None:
    layout = Layout.parse("dp2.tp2.pp2/zbv/mb2")
    run = RunConfig(model="gpt2", **SHALLOW["gpt2"], layout=layout, global_batch_size=16, checkpointing="2")
    assert predicted_transfers(resolve(run)).keys() == {"dp", "pp", "world"}


def test_statistics_of_a_batch_are_sent_in_fp32_under_bf16(workers: WorkerPool) -> None:
    check(workers, "resnet", "dp2", precision="bf16", norm="syncbatch")


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize(
    "layout",
    [
        "dp2/zero1",
        "dp2/zero3",
        "dp4/zero3/shard2",
        "tp2",
        "pp2/mb2",
        "tp2/sp",
        pytest.param("dp2.tp2/zero3/sp", marks=ALWAYS),  # what FSDP casts and reduces
    ],
)
def test_precision_sets_the_bytes(workers: WorkerPool, layout: str, precision: str) -> None:
    check(workers, "gpt2", layout, precision=precision)
