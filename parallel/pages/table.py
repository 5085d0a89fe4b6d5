"""A table of a page: cells with the number behind their text, so that a column sorts by size and not by spelling."""

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "–"


@dataclass(frozen=True)
class Cell:
    """What one cell shows. value: the number that it is sorted by. look: classes of the style. href: an anchor."""

    text: str
    value: float | None = None
    look: str = ""
    href: str = ""

    @property
    def key(self) -> str:
        """What the script sorts by, short: empty where the text alone says it."""
        return "" if self.value is None else f"{self.value:.6g}"


@dataclass(frozen=True)
class Column:
    """How a column is named and shown.

    number: digits stand under each other. wide: long text, which wraps. name_of_row: a header of its row. choose: few
    values, one of which can be picked. later: not shown at first where there is a script.
    """

    name: str
    number: bool = False
    wide: bool = False
    name_of_row: bool = False
    choose: bool = False
    later: bool = False
    about: str = ""

    @property
    def look(self) -> str:
        """Return the classes of its cells."""
        return " ".join(word for word, has in (("number", self.number), ("wide", self.wide)) if has)


@dataclass(frozen=True)
class Table:
    """A caption, columns, and rows of as many cells. tools: it can be filtered, and its columns hidden."""

    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Cell]]
    tools: bool = False


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, tools: bool = False) -> Table:
    """Return a table without those columns of which nothing is known in any row."""
    known = [i for i, _ in enumerate(columns) if any(row[i].text != UNKNOWN for row in rows)]
    return Table(caption, tuple(columns[i] for i in known), [[row[i] for i in known] for row in rows], tools)
