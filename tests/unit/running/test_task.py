"""Processes are started in one way, and what fails leaves one row, from wherever it failed."""

import ast
from pathlib import Path
from typing import Any

import pytest

from paralab.benchmarks.documents.architecture import modules
from paralab.console.phases import hidden
from paralab.errors import RankError
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.failure import Failure, Progress
from paralab.processes.rank import Rank
from paralab.records.reading import read
from paralab.records.requested import Requested
from paralab.running import task

RUN = RunConfig(size="tiny", nproc=1)
ALONE = Rank(0, 1, 0, 1, "python")
REQUESTED = Requested(strategy="ddp", run_id="abc")
ONE_WAY = "paralab.running.task"
# what nobody else takes; `launch` guards its ranks as well, before their task begins, and a program that joins the
# processes of a launcher by itself (`paralab.join`) has no task
OF_ONE_WAY = {
    "paralab.processes.launch.launch": {ONE_WAY},
    "paralab.processes.failure.guard": {ONE_WAY, "paralab.processes.launch", "paralab.library.world"},
    "paralab.records.describe.failed": {ONE_WAY},
    "paralab.records.describe.record_failure": {ONE_WAY},
}


def taken(source: str) -> set[str]:
    """Return which functions of the one way a module imports or names, under whatever name."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [(node, alias) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    names = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node, alias in imports}
    used = set(names.values())
    for node in nodes:
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            used.add(f"{names.get(first, first)}.{rest}")
    return used & OF_ONE_WAY.keys()


def test_there_is_one_way_to_run() -> None:
    found = {name: taken(path.read_text()) for name, path in modules().items()}
    assert {function: {name for name in found if function in found[name]} for function in OF_ONE_WAY} == OF_ONE_WAY


@pytest.mark.parametrize(
    "source",
    [
        "def late():\n    from paralab.processes.launch import launch as begin\n    begin('a:b', nproc=2)",
        "import paralab.processes.launch\nparalab.processes.launch.launch('a:b', nproc=2)",
        "from paralab.records import describe\ndescribe.record_failure(rows, work, requested, rank, error)",
    ],
)
def test_another_way_is_seen(source: str) -> None:
    assert taken(source)


def start(rows: Path | None, monkeypatch: pytest.MonkeyPatch, launch: Any) -> None:
    monkeypatch.setattr(task, "launch", launch)
    row = task.FailureRow(rows, resolve(RUN), REQUESTED) if rows is not None else None
    task.start("tests.e2e.tasks:pid", nproc=1, failure_row=row)


def test_ranks_that_leave_no_row_have_one_from_what_started_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*args: Any, **options: Any) -> None:
        raise RankError("rank 1 was ended by SIGKILL")

    rows = tmp_path / "rows.csv"
    for _ in range(2):  # the second finds the row of the first, as it would that of a rank
        with pytest.raises(RankError):
            start(rows, monkeypatch, launch)
    (row,) = read(rows)
    assert (row.run_id, row.status, row.reason) == ("abc", "crash", "rank 1 was ended by SIGKILL")
    with pytest.raises(RankError):
        start(None, monkeypatch, launch)
    assert len(read(rows)) == 1


def test_ranks_that_do_not_meet_leave_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.csv"
    start(rows, monkeypatch, lambda *_, on_failure, **__: on_failure(Failure(None, None, "hang", "nobody came")))
    assert [(row.status, row.reason) for row in read(rows)] == [("hang", "nobody came")]


@pytest.mark.parametrize("leaves_rows", [True, False])
def test_what_fails_on_a_rank_leaves_its_row(leaves_rows: bool, tmp_path: Path) -> None:
    rows, progress = tmp_path / "rows.csv", Progress()
    with (
        pytest.raises(RankError, match="rank 0 failed first at step 3: ValueError: no such token"),
        task.on_rank(
            RUN,
            ALONE,
            progress,
            phases=hidden(),
            requested=REQUESTED,
            rows=rows if leaves_rows else None,
            more=lambda requested: {"group": f"of {requested.run_id}"},
        ) as here,
    ):
        assert (here.work.layout.world_size, here.mesh.layout, here.requested) == (1, here.work.layout, REQUESTED)
        progress.step = 3
        raise ValueError("no such token")
    found = [(row.run_id, row.failed_step, row.group) for row in read(rows)] if rows.exists() else []
    assert found == ([("abc", 3, "of abc")] if leaves_rows else [])
