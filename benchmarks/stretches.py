"""What `paralab overhead` does on one rank: intervals of steps with measuring and without, in pairs."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist

from paralab import engines
from paralab.benchmarks.case.measured import RankResult
from paralab.benchmarks.case.steps import timed_steps
from paralab.benchmarks.overhead import OverheadConfig, Pair
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.planning.batches import training_batches
from paralab.planning.work import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.log import StepLog
from paralab.records.requested import Requested
from paralab.running import task
from paralab.training.layers import LayerLog

Around = Callable[[int], AbstractContextManager]  # of a step, by its number


def alternate(rank: Rank, progress: Progress, run: OverheadConfig, requested: Requested) -> list[Pair]:
    """Take the stretches on this rank and return their times."""
    pairs, phases = [], Phases(Moment.now(), shown=rank.is_main)
    with task.on_rank(run, rank, progress, phases=phases, requested=requested) as here:
        work, mesh = here.work, here.mesh
        engine = engines.build(work.context(mesh), run.engine, ds_config=run.ds_config)
        batches = training_batches(work, mesh)
        phases.begin(f"warming up: {run.warmup} steps")
        for _ in range(run.warmup):
            engine.step(next(batches))
        phases.begin(f"{run.pairs} pairs of {run.steps} steps with measuring and {run.steps} without", total=run.pairs)
        with tempfile.TemporaryDirectory() as folder, _layers(run, engine, Path(folder)) as layers:
            for number in range(run.pairs):
                bare_s = _bare(engine, batches, work, mesh) if number % 2 else None
                measured_s, share = _measured(engine, batches, work, mesh, progress, layers)
                bare_s = _bare(engine, batches, work, mesh) if bare_s is None else bare_s
                pairs.append(Pair(measured_s, bare_s, share))
                phases.advance()
    return pairs


@contextmanager
def _layers(run: OverheadConfig, engine: Engine, folder: Path) -> Iterator[Around | None]:
    """Yield what measures the layers in a step, and writes what it finds, where that is what is asked about."""
    if run.layer_stats_every is None:
        yield None
        return
    measured, log = LayerLog(engine, run.layer_stats_every), StepLog(folder / "log.jsonl")

    @contextmanager
    def around(step: int) -> Iterator[None]:
        with measured.around(step):
            yield
        for record in measured.take():
            log.write(record)

    yield around
    log.close()


def _measured(
    engine: Engine,
    batches: Iterator[Batch],
    work: Work,
    mesh: Mesh,
    progress: Progress,
    layers: Around | None,
) -> tuple[float, float | None]:
    """Return the time of steps with measuring, and the share of a core that the sampler took, where it ran."""
    if layers is not None:
        return _bare(engine, batches, work, mesh, around=layers), None
    result = RankResult()
    timed_steps(engine, batches, work, mesh, result, progress)
    assert result.telemetry is not None
    return sum(result.step_times_s), result.telemetry.sampler_share


def _bare(
    engine: Engine,
    batches: Iterator[Batch],
    work: Work,
    mesh: Mesh,
    *,
    around: Around = lambda step: nullcontext(),
) -> float:
    if mesh.world is not None:
        dist.barrier(group=mesh.world)
    began_s = time.perf_counter()
    for step in range(work.run.steps):
        with around(step):
            engine.step(next(batches))
    if mesh.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s
