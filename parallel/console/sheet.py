"""Parse a CSV file into lines of cells, whichever program saved it last.

Spreadsheets save the same table with a byte order mark or as UTF-16, with semicolons, tabs or bars between cells, which
a first line `sep=;` may name, with CRLF at the ends of lines and with lines that hold nothing. All of these are read;
what cannot be read without a guess is refused by name.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from paralab.console.inputs import other_form
from paralab.errors import DataError

_MARKS = (  # the longer ones first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKED = {  # how files begin that hold a table, and are none
    b"\x1f\x8b": "is packed with gzip: unpack it with `gunzip`",
    b"PK\x03\x04": "is a workbook (.xlsx, .ods) or a zip archive: save it as CSV in UTF-8, or unpack it",
    b"\xd0\xcf\x11\xe0": "is a workbook (.xls): save it as CSV in UTF-8",
}
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED_DELIMITER = re.compile(r'"?sep=([,;|\t])"?[,;|\t]*(?:\r\n?|\n)')  # the first line that Excel reads


@dataclass(frozen=True)
class Line:
    """The cells of one line of a file; lines are counted from 1."""

    number: int
    cells: list[str]

    @property
    def blank(self) -> bool:
        return not any(cell.strip() for cell in self.cells)


@dataclass(frozen=True)
class Sheet:
    """A table of text. The first line is not among `lines`: it holds the names of the columns."""

    columns: list[str]
    lines: list[Line]
    finished: bool  # False where our own last line lacks its line break (a writer died): it is left out


def parse(content: bytes, path: Path, *, torn: bool = True) -> Sheet:
    """Return the table in the bytes of a file; `path` is only named in errors.

    torn: whether a last line of ours that lacks its line break was not finished.
    Raises: DataError for another encoding, or cells that do not parse.
    """
    what = other_form(content) or next((said for mark, said in _PACKED.items() if content.startswith(mark)), "")
    if what:
        raise DataError(f"{path} {what}")
    text = _decoded(content, path)
    if torn and not marks_of_another_program(content):  # those write a file at once, some without a last line break
        text, finished = _finished(text)
    else:
        finished = True
    named = _NAMED_DELIMITER.match(text)
    found = _lines(text[named.end() :], named[1], path, above=1) if named else _lines(text, _delimiter(text), path)
    head = next(found, Line(1, []))
    columns = [name.strip() for name in head.cells]
    while columns and not columns[-1]:  # empty columns at the right edge
        columns.pop()
    return Sheet(columns, [_within(line, len(columns), len(head.cells)) for line in found], finished)


def named_delimiter(first_line: str) -> str | None:
    """Return what a first line such as `sep=;` says stands between cells; None for any other line."""
    named = _NAMED_DELIMITER.match(first_line)
    return named[1] if named else None


def marks_of_another_program(content: bytes) -> list[str]:
    """Name what shows that a file was not written by paralab in its present form."""
    encoding = [name for mark, name in _MARKS if content.startswith(mark)]
    first = content.split(b"\n", 1)[0]
    seen = [f"a byte order mark of {name.upper()}" for name in encoding]
    if named_delimiter(first.decode(errors="replace") + "\n"):
        seen.append("a first line that names what is between cells")
    if first.endswith(b"\r") or b"\r" in first:
        seen.append("CR at the ends of lines")
    if not encoding and (delimiter := _delimiter(first.decode(errors="replace"))) != ",":
        seen.append(f"{_DELIMITERS[delimiter]} between cells")
    return seen


def _decoded(content: bytes, path: Path) -> str:
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", "utf-8"))
    body = content[len(mark) :]
    if not mark and b"\x00" in body[:64]:
        raise DataError(f"{path} is no CSV file in UTF-8 (zero bytes): save it as CSV in UTF-8")
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8" and b"\n" not in body[error.start :]:  # a writer died within a character
            return body[: error.start].decode()
        line = body[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line} is not {encoding.upper()}: save the file as CSV in UTF-8") from None


def _finished(text: str) -> tuple[str, bool]:
    """Return the text up to its last line break, and whether that was all."""
    end = max(text.rfind("\n"), text.rfind("\r")) + 1
    return text[:end], end == len(text)


def _delimiter(text: str) -> str:
    """Return what stands between the names of the columns, which hold none of the candidates."""
    first = text.lstrip("\r\n").splitlines()[:1]
    return max(_DELIMITERS, key=first[0].count) if first else ","


def _lines(text: str, delimiter: str, path: Path, *, above: int = 0) -> Iterator[Line]:
    """Yield the lines of a text; above: how many more the file has before it."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the default refuses cells above 131,072
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    whole = 0  # up to which line; a quotation mark that is not closed takes all lines after it
    try:
        for cells in reader:
            whole = reader.line_num
            if cells:  # a line of no characters is none
                yield Line(above + whole, cells)
    except csv.Error as error:
        raise DataError(
            f"{path} line {above + whole + 1} is damaged ({error}): correct its quotes, or remove it"
        ) from None


def _within(line: Line, columns: int, width: int) -> Line:
    """Cut off the empty cells of the empty columns at the right edge, which lie between `columns` and `width`.

    A line of more cells than that stays as it is: a comma too many may have moved its cells to the right.
    """
    empty = len(line.cells) <= width and not any(cell.strip() for cell in line.cells[columns:])
    return Line(line.number, line.cells[:columns]) if empty else line
