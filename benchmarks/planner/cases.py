"""The published measurements that predictions are checked on: `benchmarks/results/planner`, one file a table."""

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from paralab.axes.case import Case
from paralab.axes.costs import Machine
from paralab.errors import DataError
from paralab.planning import cases
from paralab.planning.settle import Settled, arrays, settle

FOLDER = Path(__file__).parents[1] / "results" / "planner"
T = TypeVar("T", Case, Machine)
_ARRAYS = ("step_time_s", "memory_gib", "fits", "table", "quality", "case_id")


@dataclass(frozen=True)
class Published:
    """Cases and what was measured of them, arrays (cases,): seconds and GiB, NaN where a table does not say."""

    settled: list[Settled]
    case: Case
    machine: Machine
    step_time_s: np.ndarray
    memory_gib: np.ndarray
    fits: np.ndarray
    table: np.ndarray
    quality: np.ndarray
    case_id: np.ndarray

    def part(self, chosen: np.ndarray) -> "Published":
        """Return some of the cases. chosen: booleans (cases,)."""
        return Published(
            [one for one, keep in zip(self.settled, chosen, strict=True) if keep],
            _part(self.case, chosen),
            _part(self.machine, chosen),
            *(getattr(self, name)[chosen] for name in _ARRAYS),
        )

    def tables(self) -> list[str]:
        """Return the names of the tables."""
        return sorted(set(self.table.tolist()))


def _part(values: T, chosen: np.ndarray) -> T:
    return type(values)(**{field.name: getattr(values, field.name)[chosen] for field in fields(values)})


@cache
def published() -> Published:
    """Return all published cases. Raises: DataError where a row cannot be read."""
    settled, table, quality, measured, names = [], [], [], [], []
    for file in sorted(FOLDER.glob("*.csv")):
        for row in cases.read(file):
            if row.error is not None:
                raise DataError(f"{file}, line {row.line}: {row.error}")
            settled.append(settle(row.raw))
            table.append(file.stem)
            names.append(row.case_id)
            measured.append(row.measured)
            quality.append(row.quality)
    case, machine = arrays(settled)
    return Published(
        settled,
        case,
        machine,
        np.array([float(one["measured_step_time_s"] or "nan") for one in measured]),
        np.array([float(one["measured_memory_gib"] or "nan") for one in measured]),
        np.array([one["measured_fits"] for one in measured]),
        np.array(table),
        np.array(quality),
        np.array(names),
    )
