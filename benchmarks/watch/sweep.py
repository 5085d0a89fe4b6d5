"""What a file of rows says of a sweep that adds to it: what is done, what runs now, and the cases so far."""

import socket
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from paralab.benchmarks.report.work import METHOD, key, method_labels, work_label
from paralab.benchmarks.watch.training import is_alive
from paralab.errors import DataError
from paralab.records.log_files import log_path
from paralab.records.reading import read
from paralab.records.row import RunRecord
from paralab.records.sweep_progress import SweepProgress, progress_path, read_sweep
from paralab.records.tail import Tail


@dataclass(frozen=True)
class CaseView:
    """The runs of one case. step_times_s: of those that ended well. last: how the last one ended."""

    name: str
    runs: int
    failed: int
    step_times_s: Sequence[float]
    samples_per_s: float | None
    last: str


@dataclass(frozen=True)
class SweepView:
    """A sweep at one moment. works: its cases by what they do. now: the run that is under way, with its last step."""

    file: Path
    group: str
    status: str
    done: int
    total: int | None
    now: str
    now_step: int | None
    left_s: float | None
    works: dict[str, list[CaseView]]

    @property
    def is_over(self) -> bool:
        return self.status != "running"


class SweepFiles:
    """A file of rows and the logs beside it, read again at every look. Raises: DataError for what is no such file."""

    def __init__(self, file: Path) -> None:
        if not file.exists() and not progress_path(file).exists():
            raise DataError(f"{file} is not there: give the folder of a training run, or the CSV file of a sweep")
        self.file = file
        self.rows: list[RunRecord] = []
        self._seen: tuple[int, int] | None = None
        self._log: Tail | None = None

    def look(self) -> SweepView:
        """Return the sweep as it is now. Raises: DataError when the rows cannot be read."""
        self._read_rows()
        far = read_sweep(self.file)
        group = far.group if far else (self.rows[-1].group or "" if self.rows else "")
        rows = [row for row in self.rows if (row.group or "") == group]
        is_running = far is not None and far.now is not None and _is_there(far)
        return SweepView(
            file=self.file,
            group=group,
            status=_status(far, is_running=is_running),
            done=far.done if far else len(rows),
            total=far.total if far else None,
            now=(far.now or "") if far and is_running else "",
            now_step=self._step() if is_running else None,
            left_s=_left_s(far) if far and is_running else None,
            works=_works(rows),
        )

    def _read_rows(self) -> None:
        if not self.file.exists():
            return
        state = self.file.stat()
        if self._seen != (state.st_mtime_ns, state.st_size):
            with warnings.catch_warnings():  # of a line that is being written
                warnings.simplefilter("ignore")
                self.rows = read(self.file)
            self._seen = (state.st_mtime_ns, state.st_size)

    def _step(self) -> int | None:
        """Return how many steps the run under way has logged: its logs are the newest, and it has no row yet."""
        logs = list(self.file.with_suffix("").glob("*.rank0.jsonl"))
        newest = max(logs, key=lambda path: path.stat().st_mtime, default=None)
        if newest is None or newest in {log_path(self.file, row.run_id, 0) for row in self.rows}:
            return None
        if self._log is None or self._log.path != newest:
            self._log = Tail(newest)
        self._log.follow()
        return sum(record.get("record") == "step" for record in self._log.records) or None


def _is_there(far: SweepProgress) -> bool:
    return far.host != socket.gethostname() or is_alive(far.process)


def _status(far: SweepProgress | None, *, is_running: bool) -> str:
    if is_running:
        return "running"
    if far is not None and far.now is not None:
        return "interrupted: the same command goes on with what is missing"
    return "ended"


def _left_s(far: SweepProgress) -> float | None:
    return (time.time() - far.began_s) / far.taken * (far.total - far.done) if far.taken else None


def _works(rows: Sequence[RunRecord]) -> dict[str, list[CaseView]]:
    """Return the cases of each piece of work, in the order of their first rows."""
    labels = method_labels(rows)
    cases: dict[str, dict[object, list[tuple[str, RunRecord]]]] = {}
    for row, label in zip(rows, labels, strict=True):
        cases.setdefault(work_label(row), {}).setdefault((label, key(row, METHOD)), []).append((label, row))
    return {work: [_case(runs) for runs in of.values()] for work, of in cases.items()}


def _case(runs: Sequence[tuple[str, RunRecord]]) -> CaseView:
    rows = [row for _, row in runs]
    good = [row for row in rows if row.status == "ok" and row.parity is not False]
    speeds = [row.samples_per_s for row in good if row.samples_per_s]
    last = rows[-1]
    return CaseView(
        name=runs[0][0],
        runs=len(rows),
        failed=len(rows) - len(good),
        step_times_s=[row.step_time_p50_s for row in good if row.step_time_p50_s],
        samples_per_s=median(speeds) if speeds else None,
        last="parity failed" if last.parity is False else last.status or "",
    )
