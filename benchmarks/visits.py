"""Runs of several cases, one after the other, in the same processes: what has to be interleaved starts once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from paralab.benchmarks.case.run import run_case
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.measure.load import Load, wait_for_quiet
from paralab.options.config import RunConfig
from paralab.parity.reference import References
from paralab.parity.scope import prove_on
from paralab.processes.failure import Progress
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from paralab.records.writing import append
from paralab.running import task


@dataclass(frozen=True)
class Stop:
    """One run of one case, and what was requested. parity: compare its first steps with those of one process."""

    run: RunConfig
    requested: Requested
    parity: bool = False


def visit(rank: Rank, progress: Progress, stops: Sequence[Stop], out: str, waits_s: float) -> None:
    """Measure each run in turn on this rank; rank 0 writes its row, and what other programs did meanwhile.

    waits_s: how long each run waits at most for other programs to leave the processors alone.
    """
    lines, references = Phases(Moment.now(), shown=rank.is_main), References()
    for number, stop in enumerate(stops, 1):
        lines.begin(f"{number} of {len(stops)}: {stop.run.model} {stop.run.size} {stop.run.layout}")
        lines.end()
        requested = replace(stop.requested, started=Moment.now())
        phases = Phases(requested.started, shown=rank.is_main, transient=True, between_lines=True)
        with task.on_rank(stop.run, rank, progress, phases=phases, requested=requested, rows=out) as here:
            proof = prove_on(here.work, here.mesh, rank, references) if stop.parity else None
            if waits_s:
                wait_for_quiet(at_most_s=waits_s)
            began = Load()
            record = run_case(
                here.work,
                requested=here.requested,
                rank=rank,
                mesh=here.mesh,
                proof=proof,
                progress=progress,
                phases=phases,
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


def loads(out: str | Path) -> dict[str, float]:
    """Return how many cores other programs took during each run, by its id."""
    lines = load_file(out).read_text(encoding="utf-8").split()
    return {run_id: float(cores) for run_id, cores in (line.split(",") for line in lines)}
