"""What `paralab.plan` says of a module of a program's own is what its training sends and holds."""

import pytest
import torch
from torch import Tensor

from paralab import Plan, World, parallelize, plan
from paralab.axes.initialise import local
from paralab.layout import Layout
from paralab.measure.ledger import CommLedger
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from tests.dist.library_cases import batches, made
from tests.dist.own_modules import KINDS
from tests.dist.workers import WorkerPool

NAMES = ("frozen", "both-ends", "attending")


def planned(name: str, processes: int) -> Plan:
    kind = KINDS[name]
    example = batches(kind, 1)[0]
    return plan(lambda: made(kind), processes, example=example, loss=kind.loss, precision="fp64", **kind.options)


def measured(
    rank: Rank, name: str, processes: int, layouts: dict[str, Layout]
) -> dict[str, tuple[dict[str, float], int]]:
    """Return what this rank sends in a step, by axis, and its state in bytes, for the layout of each strategy."""
    found = {}
    for strategy, layout in layouts.items():
        if rank.rank >= processes:
            make_mesh(layout, rank.device)
            continue
        found[strategy] = _measured(World(rank.rank, processes, rank.device), name, layout)
    return found


def _measured(world: World, name: str, layout: Layout) -> tuple[dict[str, float], int]:
    kind, every = KINDS[name], batches(KINDS[name], 3)
    trainer = parallelize(
        made(kind), layout, world=world, loss=kind.loss, optimizer=torch.optim.AdamW, precision="fp64",
        example=every[0], **kind.options
    )  # fmt: skip
    rows = list(trainer.shard(every))
    for batch in rows[:2]:  # DDP puts its buckets in order first
        trainer.step(batch)
    with CommLedger(trainer.mesh.groups()) as ledger:
        trainer.step(rows[2])
    sent = {axis: float(ledger.ring_bytes(axis=axis)) for axis in {row.axis for row in ledger.rows()}}
    engine = trainer.engine
    held = [local(p) for part in engine.parts for p in part.parameters()]
    states = [local(x) for state in engine.optimizer.state.values() for x in state.values()]
    return sent, _bytes(held) + _bytes([local(piece.updated) for piece in engine.pieces]) + _bytes(states)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(x.nbytes for x in tensors if x.ndim)


@pytest.mark.parametrize("name", [pytest.param("frozen", marks=pytest.mark.long), *NAMES[1:]])
def test_the_bytes_of_a_plan_are_those_that_are_sent(workers: WorkerPool, name: str) -> None:
    rows = {row.strategy: row for row in planned(name, 4) if row.sent_bytes is not None}
    layouts = {strategy: row.layout for strategy, row in rows.items()}
    answers = workers.run(f"{__name__}:measured", name, 4, layouts)[:4]
    assert len(rows) >= 5
    for strategy, row in rows.items():
        assert row.sent_bytes is not None
        most = max((answer[strategy][0] for answer in answers), key=lambda by_axis: sum(by_axis.values()))
        assert dict(row.sent_bytes) == most, strategy
