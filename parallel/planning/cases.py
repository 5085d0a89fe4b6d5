"""Files of cases, read and written: a row is read by itself, and what is wrong in one is said with its line."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paralab.console import sheet
from paralab.console.inputs import read_whole
from paralab.errors import ConfigError, DataError, UsageError, did_you_mean
from paralab.planning.columns import BY_NAME, IGNORED, MEASURED

SHOWN = 10  # layouts of an answer, where no other number is asked for
Raw = Mapping[str, Any]  # what the cells of a row say, by column; a column whose cell is empty is not there


@dataclass(frozen=True)
class Row:
    """A line of a file of cases. raw: its values; or error: what is wrong with it.

    measured, quality: what its source says of it, for checking predictions.
    """

    line: int
    case_id: str
    raw: Raw
    measured: Mapping[str, str]
    quality: str = ""
    error: str | None = None


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file of cases, `-` for stdin's bytes not among them, as spreadsheets save them too.

    Raises: DataError where the file is no such table; ConfigError for a column that is unknown or there twice.
    """
    table = sheet.parse(read_whole(path), path, torn=False)
    check_header(table.columns, path)
    return list(_rows(table))


def check_header(header: list[str], path: Path) -> None:
    """Raise DataError for a file without columns; ConfigError for one that is unknown or there twice."""
    if not any(header):
        raise DataError(f"{path} has no columns: its first line has to name them, such as layers,hidden,gpu,dp,tp,pp")
    for name in header:
        if header.count(name) > 1:
            raise ConfigError(f"{path}: column {name!r} is there {header.count(name)} times: leave one")
        if name not in BY_NAME and name not in IGNORED and not name.startswith(MEASURED):
            hint = did_you_mean(name, BY_NAME)
            raise ConfigError(f"{path}: column {name!r} is unknown{hint}: docs/planner.md lists the columns")


def _rows(table: sheet.Sheet) -> Iterator[Row]:
    header = table.columns
    for line, cells in ((line.number, line.cells) for line in table.lines if not line.blank):
        named = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        case_id = named.get("case_id", "") or str(line)
        measured = {name: value for name, value in named.items() if name.startswith(MEASURED)}
        try:
            if len(cells) != len(header):
                raise UsageError(f"{len(cells)} cells, and the header has {len(header)}: give a cell for each column")
            yield Row(line, case_id, parse(named), measured, named.get("quality", ""))
        except UsageError as error:
            yield Row(line, case_id, {}, measured, error=str(error))


def repeated(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a sentence for each row whose case_id an earlier one has as well: what is written tells them not apart."""
    first: dict[str, int] = {}
    for row in rows:
        if (line := first.setdefault(row.case_id, row.line)) != row.line:
            yield f"line {row.line}: case_id {row.case_id!r} is that of line {line} as well: give each row its own"


def parse(cells: Mapping[str, str]) -> Raw:
    """Return the values of the cells that are not empty, by column. Raises: ConfigError for one that cannot be."""
    raw = {}
    for name, text in cells.items():
        if text == "" or name not in BY_NAME:
            continue
        try:
            raw[name] = BY_NAME[name].read(text)
        except ValueError as error:
            raise ConfigError(f"{name} is {text!r}: give {error}") from None
    return raw


def write(header: list[str], rows: list[list[str]]) -> bytes:
    """Return a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
