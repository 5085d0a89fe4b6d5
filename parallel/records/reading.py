"""Reading the rows of a CSV file, of any schema up to that of today, whichever program saved it last."""

import fcntl
import re
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paralab.console import sheet
from paralab.console.inputs import check_has_end
from paralab.console.sheet import Line
from paralab.errors import DataError, UsageError
from paralab.records.cells import decode, line_of
from paralab.records.log_files import TRAINING_ROWS
from paralab.records.possible import check_possible
from paralab.records.row import REQUIRED, RunRecord, header
from paralab.records.schema import check_schema, few, present_name

_TIME = "2026-01-31T12:00:00+00:00"
_OUR_TIME = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d(\.\d+)?\+00:00")


def read(path: str | Path) -> list[RunRecord]:
    """Return the rows of a CSV file: see `read_lines`."""
    return [record for _, record in read_lines(path)]


def read_lines(path: str | Path) -> list[tuple[int, RunRecord]]:
    """Return the rows of a CSV file, each with its line, counted from 1.

    Files of an older schema are read, and files as spreadsheets save them (`paralab.console.sheet`).

    Warns of a last line that was not finished, of rows without a filled cell and of columns that have no place here;
    these are passed over.

    Raises: UsageError when it is no file of results, or one of a newer schema; DataError when it is missing, a cell
    has the wrong form or a number that its column cannot hold (`paralab.records.possible`), or a row does not say the
    schema of the columns.
    """
    path = Path(path)
    try:
        check_has_end(path)
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
    except OSError as error:
        problem = error.strerror
        inside = path / TRAINING_ROWS
        advice = f"give its rows, {inside}" if inside.is_file() else "give a CSV file that `paralab bench` wrote"
        raise DataError(f"{path} cannot be read ({problem}): {advice}") from None
    table = sheet.parse(content, path)
    if not table.finished:
        warnings.warn(f"{path}: the last line is not finished and was skipped", stacklevel=2)
    if not table.columns and line_of(header()).startswith(content):
        return []
    reader = _Reader(path, table.columns)
    rows = [(line.number, reader.row(line)) for line in table.lines if not line.blank]
    for said in (reader.passed_over(), _blank(table.lines)):
        if said:
            warnings.warn(f"{path}: {said}", stacklevel=2)
    return rows


class _Reader:
    """Turns the lines of one file into records. Raises: UsageError when its columns are not those of results."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path, self._columns, self._known = path, columns, set(columns)
        self._fitting: set[int] = set()  # schemas that the columns are those of
        if missing := [name for name in REQUIRED if name not in self._known]:
            lacks = f"it lacks {few(missing)}"
            raise UsageError(f"{path} has other columns than a result file ({lacks}): give one that `paralab` wrote")
        if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]} twice: remove one of them")
        self._names = [present_name(name) for name in columns]  # None where this version has no place for it

    def row(self, line: Line) -> RunRecord:
        place = f"{self._path} line {line.number}"
        if (names := [cell.strip("\ufeff ") for cell in line.cells]) == self._columns:
            raise DataError(f"{place} repeats the names of the columns: remove the line")
        if {"schema", "run_id", "started_at"} <= set(names):
            raise DataError(f"{place} names other columns, as of another file that was put behind: give them as two")
        if len(line.cells) != len(self._columns):
            count = f"{len(line.cells)} cells, {len(self._columns)} are needed"
            raise DataError(f"{place} has {count}: correct the line or remove it")
        values = {}
        for name, cell in zip(self._names, line.cells, strict=True):
            if name is not None:
                values[name] = self._value(cell, name, place)
        if values["schema"] not in self._fitting:
            check_schema(values["schema"], self._known, place)
            self._fitting.add(values["schema"])
        return RunRecord(**values)

    def _value(self, cell: str, name: str, place: str) -> Any:
        try:
            if cell == "" and name in REQUIRED:
                raise ValueError("it cannot be empty")
            value = decode(cell, name, RunRecord)
            if isinstance(value, int | float):
                check_possible(value, name)
            return _in_utc(value) if name == "started_at" else value
        except ValueError as error:
            raise DataError(f"{place}: {name} is {cell[:60]!r} ({error}): correct the cell") from None

    def passed_over(self) -> str:
        """Name the columns that were not read."""
        pairs = zip(self._columns, self._names, strict=True)
        extra = [column or "(without a name)" for column, name in pairs if name is None]
        return f"columns that this version does not know were skipped: {', '.join(extra)}" if extra else ""


def _in_utc(text: str) -> str:
    """Return a time as text that has its place among others; what says no zone is in UTC, as paralab writes it.

    Raises: ValueError for what is none.
    """
    if _OUR_TIME.fullmatch(text):
        return text
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise ValueError(f"a time such as {_TIME} is needed: a spreadsheet may have changed it") from None


def _blank(lines: Sequence[Line]) -> str:
    """Say which lines hold no value."""
    numbers = [str(line.number) for line in lines if line.blank]
    if not numbers:
        return ""
    return f"{'lines' if len(numbers) > 1 else 'line'} {few(numbers)} without a filled cell: skipped"
