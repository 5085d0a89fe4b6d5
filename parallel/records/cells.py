"""Values as the cells of a CSV file, and back.

Text is made harmless and stays exact. Control characters are written as `\\u000a`, a backslash as two, so one run is
always one line; text that a spreadsheet would run as a formula (it begins with = + - @) gets a leading apostrophe, and
so does text that is empty or begins with an apostrophe itself. Reading undoes both. An empty cell is None.
"""

import csv
import io
import operator
import re
from collections.abc import Iterable
from typing import Any

from paralab.records.kinds import field_types, value_kind

_SPECIAL = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")
_NUMBER = {  # of digits 0 to 9 alone; data frames write whole numbers with .0 beside empty cells
    int: re.compile(r"[-+]?[0-9]{1,400}(\.0)?"),
    float: re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,5})?|[-+]?(nan|inf|infinity)", re.IGNORECASE),
}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "'")  # the wide forms count in some locales


def one_line(text: str) -> str:
    """Return text with its control characters and backslashes escaped: it can move no cursor and start no line."""
    return _SPECIAL.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", text)


def harmless(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet runs as a formula (see the top of this module)."""
    text = one_line(text)
    return f"'{text}" if not text or text.startswith(_FORMULA) else text


def encode(value: Any, name: str, kind: type) -> str:
    """Return a value as the cell of a field of a record. Raises: ValueError for one that the field does not take."""
    if value is None:
        return ""
    expected, choices = value_kind(field_types(kind)[name])
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r}: one of {', '.join(choices)} is needed")
    if expected is str:
        return harmless(value)
    if expected is bool:
        return "true" if value else "false"
    return repr(operator.index(value)) if expected is int else repr(float(value))


def decode(cell: str, name: str, kind: type) -> Any:
    """Return the value of a cell. Raises: ValueError for one that the field does not take."""
    if cell == "":
        return None
    expected, choices = value_kind(field_types(kind)[name])
    if expected is not str or choices:
        cell = cell.strip()
    if expected is str:
        escaped = cell.removeprefix("'")
        text = _ESCAPE.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), escaped)
        if choices and text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is needed")
        return text
    if expected is bool:
        if cell.lower() not in ("true", "false"):
            raise ValueError("true or false is needed")
        return cell.lower() == "true"  # spreadsheets write TRUE
    if not _NUMBER[expected].fullmatch(cell):
        raise ValueError(_why_no_number(cell, expected))
    return expected(cell.removesuffix(".0") if expected is int else cell)


def _why_no_number(cell: str, expected: type) -> str:
    """Say what a cell is that is not the number that is needed: the forms in which spreadsheets save numbers."""
    if expected is int and cell[-1:].isdecimal() and _NUMBER[float].fullmatch(cell):
        return "a whole number is needed: a spreadsheet that shortens it to this loses digits, use the file it read"
    if re.fullmatch(r"[-+]?[0-9]*([,.' \u00a0\u202f][0-9]+)+([eE][-+]?[0-9]+)?", cell):
        return "a decimal comma or separators of thousands: save the file with decimal points and plain digits"
    return "a whole number is needed" if expected is int else "a number is needed, such as 0.125"


def line_of(cells: Iterable[str]) -> bytes:
    """Return cells as a line of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
