"""What each rank of `paralab run` does: prove a case, measure it, and append its row."""

from typing import Any

from paralab.benchmarks.case.run import run_case
from paralab.console.phases import Phases
from paralab.parity.reference import References
from paralab.parity.scope import prove_on
from paralab.processes.failure import Progress
from paralab.processes.rank import Rank
from paralab.records.log import StepLog
from paralab.records.log_files import log_path
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.writing import append
from paralab.running import task


def measure(rank: Rank, progress: Progress, run: Any, requested: Requested, out: str) -> RunRecord:
    """Run one case on this rank and append its row, or the row of its failure."""
    phases = Phases(requested.started, shown=rank.is_main)
    with task.on_rank(run, rank, progress, phases=phases, requested=requested, rows=out) as here:
        if run.parity:
            phases.begin("parity: a few steps in one process")
        proof = prove_on(here.work, here.mesh, rank, References()) if run.parity else None
        record = run_case(
            here.work,
            requested=here.requested,
            rank=rank,
            mesh=here.mesh,
            proof=proof,
            log=StepLog(log_path(out, here.requested.run_id, rank.rank)),
            progress=progress,
            phases=phases,
            trace=run.trace,
            until_loss=run.until_loss,
        )
        if rank.is_main:
            append(out, record)
    return record
