"""What `paralab overhead` does on one rank: intervals of steps with measuring and without, in pairs."""

import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from paralab import engines
from paralab.benchmarks.case import RankResult, timed_steps
from paralab.benchmarks.overhead import OverheadConfig, Pair
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.planning.batches import training_batches
from paralab.planning.resolve import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from paralab.running import task


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
        for number in range(run.pairs):
            bare_s = _bare(engine, batches, work, mesh) if number % 2 else None
            result = RankResult()
            timed_steps(engine, batches, work, mesh, result, progress)
            bare_s = _bare(engine, batches, work, mesh) if bare_s is None else bare_s
            assert result.telemetry is not None
            pairs.append(Pair(sum(result.step_times_s), bare_s, result.telemetry.sampler_share))
            phases.advance()
    return pairs


def _bare(engine: Engine, batches: Iterator[Batch], work: Work, mesh: Mesh) -> float:
    if mesh.world is not None:
        dist.barrier(group=mesh.world)
    began_s = time.perf_counter()
    for _ in range(work.run.steps):
        engine.step(next(batches))
    if mesh.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began_s
