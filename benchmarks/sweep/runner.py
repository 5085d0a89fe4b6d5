"""Runs the cases of a sweep, each in processes of its own, and goes on with a sweep that was interrupted."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from paralab.benchmarks.sweep.cases import Case
from paralab.benchmarks.sweep.options import DEFAULT_OUT, SweepConfig, most_repeats
from paralab.benchmarks.sweep.progress import progress
from paralab.console.phases import is_phase
from paralab.models import SPECS, file_columns
from paralab.options.flags import flags_of
from paralab.processes.oom_killer import OomKiller
from paralab.processes.with_parent import with_parent
from paralab.records.environment import repository_state
from paralab.records.reading import read
from paralab.records.row import RunRecord
from paralab.records.sweep_progress import SweepProgress
from paralab.records.writing import append, check_appendable

_ROOT = Path(__file__).resolve().parents[2]


class Runner:
    """Runs the cases of one sweep, each in processes of its own.

    A run that has its row is not taken again: that is how a sweep goes on after an interruption. What failed is, since
    its cause may be gone, and so is what other code has run. The rows before stay in the file.
    """

    def __init__(self, config: SweepConfig, cases: list[Case], bar: "progress") -> None:
        self.code = repository_state()
        looks = ["until decided"] if config.until_decided else []
        key = repr(([case.command for case in cases], config.vary, self.code, *looks))
        self.group = config.group or f"bench-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        self.config, self.bar, self.out = config, bar, config.out or DEFAULT_OUT
        check_appendable(self.out)
        self.rows: dict[str, list[RunRecord]] = {}  # of this sweep, by the name of the case
        self.kept, self.again = 0, 0
        self.made: set[str] = set()  # ids of the runs that were taken now
        self.began_s = time.time()

    def run(self, case: Case, repeat: int = 0) -> RunRecord:
        """Return the row of a case, which is there afterwards whatever happened to its run."""
        run = case.repeat(repeat)
        most = most_repeats(self.config) if self.config.until_decided else self.config.repeats
        self.say_what_runs(f"{case.name}, repeat {repeat + 1} of {most}")
        before = self._row(run, repeat)
        again = self._why_again(before) if before is not None else ""
        row = before if before is not None and not again else self._run(run, repeat)
        if row is not before:
            self.made.add(row.run_id)
            note = f" ({again}: run again)" if again else ""
        else:
            note = " (the same run as one above)" if row.run_id in self.made else " (has its row already)"
        self.kept += row is before and row.run_id not in self.made
        self.again += bool(again)
        self.rows.setdefault(case.name, []).append(row)
        self.bar.advance(f"repeat {repeat + 1} of {most}: {case.name}{note}", taken=row is not before)
        return row

    def say_what_runs(self, name: str | None) -> None:
        """Write down how far the sweep is, for `paralab watch`. name: of what runs now, None at the end."""
        SweepProgress(
            group=self.group,
            done=self.bar.count,
            total=self.bar.total,
            taken=len(self.made),
            now=name,
            began_s=self.began_s,
        ).write(self.out)

    @property
    def all_rows(self) -> list[RunRecord]:
        return [row for rows in self.rows.values() for row in rows]

    def run_new(self, case: Case) -> RunRecord:
        """Return the row of the first run of a case that was not among those of the sweep so far."""
        self.bar.extend(1)
        return self.run(case)

    def notes(self) -> Iterator[str]:
        """Yield what a reader of the table has to know of the rows before."""
        if self.kept:
            yield f"{self.kept} of these runs had their rows in {self.out} already: use another --out to run them again"
        if self.again:
            yield f"{self.again} of these runs were run again; their earlier rows stay in {self.out}"

    def _row(self, case: Case, repeat: int) -> RunRecord | None:
        """Return the last row of this sweep for one repeat of a case."""
        rows = read(self.out) if Path(self.out).exists() else []
        mine = (row for row in reversed(rows) if (row.group, row.repeat) == (self.group, repeat))
        return next((row for row in mine if row.command == case.command), None)

    def _why_again(self, row: RunRecord) -> str:
        """Say why a row that is there does not stand for the run; empty where it does."""
        if row.status != "ok":
            return f"failed before, {row.status}"
        if row.parity is False:
            return "parity failed before"
        return "" if (row.git_commit, row.git_dirty) == self.code else f"was run by commit {(row.git_commit or '')[:7]}"

    def _run(self, case: Case, repeat: int) -> RunRecord:
        """Run one case in its own session, so that it can be ended with all its processes."""
        started_at, began_s = datetime.now(UTC), time.monotonic()
        before, oom_killer = self._row(case, repeat), OomKiller()
        where = ["--group", self.group, "--repeat", str(repeat), "--out", self.out]
        words = [sys.executable, str(_ROOT / "benchmarks" / "run.py"), *flags_of(case.config), *where]
        process = subprocess.Popen(
            with_parent(words), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        status, reason = "crash", ""
        try:
            _, stderr = process.communicate(timeout=self.config.time_limit_s)
            lines = [line for line in stderr.splitlines() if not is_phase(line)]
            said = (line for line in reversed(lines) if line.startswith("paralab:"))
            reason = next(said, " ".join(lines)[-200:]) or _end(process.returncode)
        except subprocess.TimeoutExpired:
            status, reason = "hang", f"no result within --time-limit-s {self.config.time_limit_s}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        row = self._row(case, repeat)
        if row is not None and row != before:  # the run left it, of success or of failure
            return row
        if oom_killer.has_struck and process.returncode == -signal.SIGKILL and status == "crash":
            status, reason = "oom", f"{reason} {oom_killer.BLAME}"
        row = _failure_row(case, self.group, repeat, status, reason, self.code, started_at, time.monotonic() - began_s)
        append(self.out, row)
        return row


def is_good(row: RunRecord) -> bool:
    """Return whether a run ended well and, where parity was checked, computed what one process computes."""
    return row.status == "ok" and row.parity is not False


def _end(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}, without a message"


def _failure_row(
    case: Case,
    group: str,
    repeat: int,
    status: str,
    reason: str,
    code: tuple[str | None, bool | None],
    started_at: datetime,
    wall_s: float,
) -> RunRecord:
    config = case.config
    return RunRecord(
        run_id=uuid4().hex[:12],
        group=group,
        repeat=repeat,
        started_at=started_at.isoformat(timespec="milliseconds"),
        command=case.command,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        strategy_requested=config.strategy or "ddp",  # what a run is divided by when nothing is requested
        layout_requested=str(config.layout) if config.layout else None,
        model=SPECS[config.model].name,
        **file_columns(config.model),  # type: ignore[arg-type]
        wall_s=wall_s,
        git_commit=code[0],
        git_dirty=code[1],
    )
