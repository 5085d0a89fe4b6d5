"""Which columns each schema has, and whether a row fits the columns of its file.

Every row holds the number of its schema. Files of an older schema are read, and what they lack is unknown; those of a
newer one are refused.
"""

from collections.abc import Sequence
from functools import cache

from paralab.errors import DataError, UsageError
from paralab.records.changes import CHANGES, COUNTED_FROM, RENAMED, SCHEMA, UNCOUNTED
from paralab.records.row import RunRecord, header


def columns_of(number: int) -> set[str]:
    """Return the columns of a schema from `COUNTED_FROM` on, by their names in that schema."""
    columns = set(header())
    for later in sorted((n for n in CHANGES if n > number), reverse=True):
        change = CHANGES[later]
        old_names = {new: old for old, new in change.renamed.items()}
        columns = {old_names.get(name, name) for name in columns - set(change.added)} | set(change.removed)
    return columns


def knows(record: RunRecord, column: str) -> bool:
    """Return whether the file of a row had a column: where it had, an empty cell is one with nothing to count."""
    return _has(record.schema, column)


@cache
def _has(schema: int, column: str) -> bool:
    return not any(column in CHANGES[number].added for number in CHANGES if number > schema)


def _ever_columns() -> set[str]:
    return set().union(*(columns_of(number) for number in range(COUNTED_FROM, SCHEMA + 1)))


def present_name(column: str) -> str | None:
    """Return what a column of any schema is called today; None where this version has no place for it."""
    while column in RENAMED:
        column = RENAMED[column]
    return column if column in header() else None


def check_schema(number: int, known: set[str], place: str) -> None:
    """Check that a row says the schema of the columns of its file.

    number: that the row says. known: the columns of the file. place: of the row, for the message.

    Raises: UsageError for a newer schema; DataError for one that has other columns.
    """
    if number > SCHEMA:
        written = f"written by a newer paralab: schema {number}, this one reads up to {SCHEMA}"
        raise UsageError(f"{place} was {written}: upgrade")
    if wrong := _misfit(number, known):
        raise DataError(
            f"{place} says schema {number}, which does not fit the columns of the file ({wrong}): "
            "remove the line, or run its case again"
        )


def _misfit(number: int, known: set[str]) -> str:
    """Say which columns a file lacks or has that a schema has or lacks; nothing where they are the same."""
    if number == UNCOUNTED:
        late = known & (_ever_columns() - columns_of(COUNTED_FROM))
        return f"has the later {few(sorted(late))}" if late else ""
    if number < COUNTED_FROM:
        return "no version of paralab wrote that"
    missing, late = columns_of(number) - known, known & (_ever_columns() - columns_of(number))
    return "; ".join(f"{verb} {few(sorted(names))}" for verb, names in (("lacks", missing), ("has", late)) if names)


def few(names: Sequence[str]) -> str:
    """Join the first three names, with dots where there are more."""
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
