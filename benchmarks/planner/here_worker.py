"""What `planner_here` starts: layouts of several models, one after the other, in the same processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from paralab.benchmarks.case import run_case
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.measure.load import Load, wait_for_quiet
from paralab.options.config import RunConfig
from paralab.processes.failure import Progress
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from paralab.records.writing import append
from paralab.running import task

_WAITS_S = 60.0


@dataclass(frozen=True)
class Stop:
    """One run of one layout, and what was requested."""

    run: RunConfig
    requested: Requested


def visit(rank: Rank, progress: Progress, stops: Sequence[Stop], out: str) -> None:
    """Measure each run in turn on this rank, without parity; rank 0 writes its row."""
    lines = Phases(Moment.now(), shown=rank.is_main)
    for number, stop in enumerate(stops, 1):
        lines.begin(f"{number} of {len(stops)}: {stop.run.model} {stop.run.size} {stop.run.layout}")
        lines.end()
        requested = replace(stop.requested, started=Moment.now())
        phases = Phases(requested.started, shown=rank.is_main, transient=True)
        with task.on_rank(stop.run, rank, progress, phases=phases, requested=requested, rows=out) as here:
            wait_for_quiet(at_most_s=_WAITS_S)
            began = Load()
            record = run_case(
                here.work, requested=here.requested, rank=rank, mesh=here.mesh, progress=progress, phases=phases
            )
            others = began.others()
            if rank.is_main:
                append(out, record)
                with open(load_file(out), "a", encoding="utf-8") as file:
                    file.write(f"{record.run_id},{others or 0:.3f}\n")
            if dist.is_initialized():
                dist.barrier()


def load_file(out: str | Path) -> Path:
    """Return the file that says how many cores other programs took during each run, by its id."""
    return Path(out).with_suffix(".load.csv")
