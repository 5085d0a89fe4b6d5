"""Start processes, do a task in each of them, and leave a row whatever happens.

The command calls `check`, `announce` and `start`; the task is a function of (rank, progress, *args), called in every
process, and enters `on_rank` for each run that it does:

    def measure(rank: Rank, progress: Progress, run: RunConfig, requested: Requested, out: str) -> RunRecord:
        phases = Phases(requested.started, shown=rank.is_main)
        with task.on_rank(run, rank, progress, phases=phases, requested=requested, rows=out) as here:
            return run_case(here.work, mesh=here.mesh, requested=here.requested, ...)

A failure gets one row: from the rank that tells it, or, where none of them could, from the process that started them.
What leaves no rows, such as `paralab verify`, runs in the same way and names no file.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paralab.console.phases import Phases
from paralab.errors import RankError
from paralab.options.config import RunConfig
from paralab.planning import fit
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.allowed import check_proc
from paralab.processes.failure import Failure, Progress, guard
from paralab.processes.launch import launch
from paralab.processes.mesh import Mesh, make_mesh
from paralab.processes.rank import Rank
from paralab.records.describe import failed, record_failure
from paralab.records.requested import Requested, shared
from paralab.records.writing import append
from paralab.running.same_options import check_same


@dataclass(frozen=True)
class FailureRow:
    """What the row of a run says if it fails, and the file that it goes to."""

    rows: str | Path
    work: Work
    requested: Requested


@dataclass(frozen=True)
class Here:
    """What a rank works with once all have met. requested: that of rank 0."""

    work: Work
    requested: Requested
    mesh: Mesh


def check(work: Work, *splits: str) -> None:
    """Refuse a run that does not fit or whose data are missing, and print what was found in these splits.

    Raises: FitError, DataError; WorldError without /proc.
    """
    check_proc()
    fit.check(work, force=work.run.force)
    work.show_data(*splits)


def announce(nproc: int, phases: Phases) -> None:
    """Show that several processes are started, or waited for where a launcher starts them."""
    if nproc > 1:
        starts_them = Rank.from_env().launcher == "python"
        phases.begin(f"starting {nproc} processes" if starts_them else f"waiting for all {nproc} processes")
    phases.end()  # the processes say what follows


def start(
    task: str, *args: Any, nproc: int, config: RunConfig | None = None, failure_row: FailureRow | None = None
) -> Any:
    """Do a task in nproc processes: new ones, or those of a launcher, of which this is one.

    task: `module:function`, called as function(rank, progress, *args). config: how the processes meet. failure_row:
    appended when the task fails and none of its ranks has left a row.
    Returns: what rank 0 returned; in a process of a launcher what this rank returned, None where it stood by.
    Raises: WorldError when a launcher started another number of processes, RankError when a rank failed.
    """
    if failure_row is None:
        return launch(task, *args, nproc=nproc, config=config)
    rows, work, requested = failure_row.rows, failure_row.work, failure_row.requested
    rank = Rank.from_env()

    def before_the_task(failure: Failure) -> None:
        append(rows, failed(work, requested, rank, failure))

    try:
        return launch(task, *args, nproc=nproc, config=config, on_failure=before_the_task)
    except RankError as error:
        record_failure(rows, work, requested, rank, error)
        raise


@contextlib.contextmanager
def on_rank(
    run: RunConfig,
    rank: Rank,
    progress: Progress,
    *,
    phases: Phases,
    requested: Requested | None = None,
    rows: str | Path | None = None,
    more: Callable[[Requested], Mapping[str, Any]] = lambda requested: {},
) -> Iterator[Here]:
    """Do one run on this rank; leave its row in `rows` if it fails and this rank is the one to tell it.

    Collective over all ranks: they make the mesh, and where a launcher started them, they first take the request of
    rank 0 and agree that all were asked for this run and that it fits. phases: what the run shows; ended with it. more:
    returns further columns of the row of a failure, when it has happened.
    Raises: UsageError where the run cannot be resolved. What fails later ends this process, with other ranks around
    (`failure.guard`); alone, it raises the user's error, or RankError for any other.
    """
    work, request = resolve(run), requested or Requested()
    progress.step = None

    def leave_row(failure: Failure) -> None:
        if rows is not None:
            append(rows, replace(failed(work, request, rank, failure), **more(request)))

    with guard(rank, progress, leave_row), phases:
        if request.launcher != "python":
            request = shared(request)
            check_same(run)
            fit.agree(work, rank, force=run.force)
        yield Here(work, request, make_mesh(work.layout, rank.device))
