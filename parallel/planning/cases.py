"""Files of cases, read and written: a row is read by itself, and what is wrong in one is said with its line."""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Return the rows of a CSV file of cases, `-` for stdin's bytes not among them.

    Raises: DataError where the file is no such table; ConfigError for a column that is unknown or there twice.
    """
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path} has zero bytes, and is no CSV file: give a table of cases")
    first = text.split("\n", 1)[0]  # spreadsheets put semicolons or tabs between cells where a comma is in numbers
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=max(",;\t", key=first.count))
    try:
        header = [name.strip() for name in next(lines, [])]
        check_header(header, path)
        return list(_rows(header, lines))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}: quote cells as CSV does") from None


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


def _rows(header: list[str], lines: "csv._reader") -> Iterator[Row]:  # type: ignore[name-defined]
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        line, named = lines.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=False))
        case_id = named.get("case_id", "") or str(line)
        measured = {name: value for name, value in named.items() if name.startswith(MEASURED)}
        try:
            if len(cells) != len(header):
                raise UsageError(f"{len(cells)} cells, and the header has {len(header)}: give a cell for each column")
            yield Row(line, case_id, parse(named), measured, named.get("quality", ""))
        except UsageError as error:
            yield Row(line, case_id, {}, measured, error=str(error))


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
