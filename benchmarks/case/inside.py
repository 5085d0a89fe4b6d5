"""Bytes, memory, waiting and the passes of a pipeline, each in steps that are not timed."""

from collections.abc import Iterator
from itertools import islice

import torch.distributed as dist

from paralab.axes import eight_bits
from paralab.benchmarks.case.measured import RankResult
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.measure.exposed import ExposedCommunication
from paralab.measure.ledger import CommLedger
from paralab.measure.memory import MemoryCensus
from paralab.measure.routing import RoutingCounts
from paralab.measure.split import Split
from paralab.measure.timeline import Timeline
from paralab.processes.mesh import Mesh
from paralab.training.interval import largest

_SPLIT_STEPS = 3  # in which waiting is told from working: one alone would be at the mercy of a hiccup


def look_inside(engine: Engine, batches: Iterator[Batch], mesh: Mesh, result: RankResult) -> None:
    """Note waiting, loads of experts, passes of a pipeline, bytes sent and memory, each in untimed steps of its own.

    What is compared between layouts by its values, the loads, is noted before all whose number of steps differs.
    """
    several = mesh.layout.world_size > 1  # ZeRO over one rank has a group as well, and sends nothing
    result.splits_from, result.splits = len(result.losses), _splits(engine, batches, mesh)
    routing = RoutingCounts(engine.parts)
    if any(largest(mesh, [len(routing.routers)])):  # some stages may have none
        with routing:
            engine.step(next(batches))
        result.loads = routing.loads
    if stages := engine.stages:
        with Timeline(stages, mesh) as timeline:
            engine.step(next(batches))
        result.spans = timeline.spans(step=len(result.losses), rank=dist.get_rank())
    if several:
        period = mesh.layout.local or 1  # steps after which data ranks have sent all that they do
        with CommLedger(mesh.groups(), steps=period) as ledger:
            for batch in islice(batches, period):
                engine.step(batch)
        result.comm = ledger.rows()
    with MemoryCensus(engine.parts, engine.optimizers, held=engine.held) as census:
        engine.step(next(batches))
    report = census.report()
    result.memory, result.tensors_peak_bytes = dict(report.peak), report.peak_bytes
    result.state_peak_bytes = report.state_peak_bytes
    result.moments = eight_bits.counted(state for optimizer in engine.optimizers for state in optimizer.state.values())


def _splits(engine: Engine, batches: Iterator[Batch], mesh: Mesh) -> list[Split]:
    seen = ExposedCommunication(mesh.device, mesh.groups() if mesh.world is not None else None)
    if mesh.world is not None:
        dist.barrier(group=mesh.world)
    for _ in range(_SPLIT_STEPS):
        with seen:
            engine.step(seen.next(batches))
    return seen.splits
