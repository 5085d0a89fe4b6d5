"""Columns of axes, those of a user's own axis included: what has no column of its own stands in `axes_json`."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from paralab.layout import Layout, words
from paralab.records.changes import COUNTS
from paralab.records.row import COMM_AXES, RunRecord


def with_axes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row in which those of axes without columns of their own are gathered in `axes_json`.

    Raises: KeyError for a name that is neither a column nor of an axis.
    """
    columns = {found.name for found in fields(RunRecord)}
    others = {name: value for name, value in values.items() if name not in columns}
    if unknown := others.keys() - _columns_of_axes():
        raise KeyError(f"a row has no {', '.join(sorted(unknown))}")
    kept = {name: value for name, value in values.items() if name in columns}
    return kept | {"axes_json": json.dumps(others) if others else None}


def _columns_of_axes() -> set[str]:
    """Return every column that an axis says something in: its degree and options, and what is sent along it."""
    names = {name for axis in words.AXES for name in axis.columns(Layout())}
    dims = [axis.name for axis in words.AXES]
    return names | {f"comm_{dim}_{count}" for dim in dims for count in COUNTS}


def sent_bytes(record: RunRecord) -> float | None:
    """Return what leaves the rank that sends most in one step, over all axes; None where it was not recorded."""
    if record.world_size == 1:
        return 0.0
    others = json.loads(record.axes_json) if record.axes_json else {}
    sizes = [getattr(record, f"comm_{axis}_sent_bytes") for axis in COMM_AXES]
    sizes += [size for name, size in others.items() if re.fullmatch(r"comm_\w+(?<!predicted)_sent_bytes", name)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None
