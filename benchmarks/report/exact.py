"""Columns that the same case gives again to the last digit: one run of each is enough to see a change.

They are counted or computed, not timed: bytes on the wire, operations and tokens of a step, memory of the state,
graph breaks, samples until a loss is reached. Runs that checked parity are compared with runs that did as well, since
the check compiles the model once more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paralab.records.row import COMM_AXES, RunRecord
from paralab.records.schema import knows

COLUMNS = (
    *(f"comm_{axis}_{count}" for axis in COMM_AXES for count in ("calls", "sent_bytes", "predicted_sent_bytes")),
    "model_flop_per_step", "tokens_per_step", "memory_state_peak_bytes", "predicted_state_bytes", "graph_breaks",
    "recompiles", "samples_to_loss",
)  # fmt: skip
Cells = tuple[float | None, ...]


@dataclass(frozen=True)
class Change:
    """A column that does not hold the same values on both sides, and its values. None: there is nothing to count."""

    column: str
    base: Cells
    other: Cells

    def __str__(self) -> str:
        return f"{self.column}: {_shown(self.base)} -> {_shown(self.other)}{self._percent()}"

    def _percent(self) -> str:
        if len(self.base) > 1 or len(self.other) > 1 or not self.base[0] or self.other[0] is None:
            return ""
        return f" ({100 * (self.other[0] / self.base[0] - 1):+.3g}%)"


def changes(base: Sequence[RunRecord], other: Sequence[RunRecord]) -> tuple[Change, ...]:
    """Return the exact columns in which two groups of good runs differ.

    A column that a side does not know, because its file is older than the column, is left out.
    """
    left, right = _alike(base, other)
    pairs = ((column, _cells(left, column), _cells(right, column)) for column in COLUMNS)
    return tuple(Change(column, mine, theirs) for column, mine, theirs in pairs if mine and theirs and mine != theirs)


def compared(base: Sequence[RunRecord], other: Sequence[RunRecord]) -> int:
    """Return how many exact columns both sides know and at least one has a number in."""
    pairs = [(_cells(base, column), _cells(other, column)) for column in COLUMNS]
    return sum({*mine, *theirs} != {None} for mine, theirs in pairs if mine and theirs)


def _alike(base: Sequence[RunRecord], other: Sequence[RunRecord]) -> tuple[list[RunRecord], list[RunRecord]]:
    """Return the runs of both sides that did not check parity, else those that did, else all."""
    for checked in (False, True):
        sides = [[run for run in runs if (run.parity is not None) is checked] for runs in (base, other)]
        if all(sides):
            return sides[0], sides[1]
    return list(base), list(other)


def _cells(runs: Iterable[RunRecord], column: str) -> Cells:
    """Return the distinct values of a column in order, from the runs whose files have it."""
    found = {getattr(run, column) for run in runs if knows(run, column)}
    return tuple(sorted(found, key=lambda cell: (cell is not None, cell or 0)))


def _shown(cells: Cells) -> str:
    return " or ".join("none" if cell is None else f"{cell:,.0f}" for cell in cells)
