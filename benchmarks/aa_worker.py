"""What `python -m paralab.benchmarks.aa` does in its process: runs of a few steps, in pairs, of one model."""

import random
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from paralab import engines
from paralab.benchmarks.aa import AaConfig, Run, write
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.planning.batches import training_batches
from paralab.processes.failure import Progress
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from paralab.running import task


def alternate(rank: Rank, progress: Progress, run: AaConfig, requested: Requested, path: str, first: int) -> None:
    """Make the comparisons from number `first` on, and append the runs of each to a file."""
    phases, began_s = Phases(Moment.now(), shown=rank.is_main), time.monotonic()
    with task.on_rank(run, rank, progress, phases=phases, requested=requested) as here:
        engine = engines.build(here.work.context(here.mesh), run.engine, ds_config=run.ds_config)
        batches = training_batches(here.work, here.mesh)
        phases.begin(f"warming up: {run.warmup} steps")
        for _ in range(run.warmup):
            engine.step(next(batches))
        phases.begin(f"comparisons {first + 1} to {run.comparisons}", total=max(0, run.comparisons - first))
        for number in range(first, run.comparisons):
            if time.monotonic() - began_s > run.max_time_s:
                return
            write(Path(path), list(_comparison(engine, batches, number, run)))
            phases.advance()


def _comparison(engine: Engine, batches: Iterator[Batch], number: int, run: AaConfig) -> Iterator[Run]:
    for repeat in range(run.repeats):
        for side in random.Random(f"{number} {repeat}").sample("AB", 2):
            started_at = datetime.now(UTC).isoformat()
            yield Run(number, repeat, side, started_at, _median_s(engine, batches, run.steps))


def _median_s(engine: Engine, batches: Iterator[Batch], steps: int) -> float:
    """Return the median time of so many steps, in seconds."""
    times_s = []
    for _ in range(steps):
        batch, began_s = next(batches), time.perf_counter()
        engine.step(batch).loss.item()
        times_s.append(time.perf_counter() - began_s)
    return statistics.median(times_s)
