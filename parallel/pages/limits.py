"""A line across a chart, such as the memory that there is."""

from dataclasses import dataclass

from markupsafe import Markup

from paralab.pages.marks import (
    Axis,
    Entry,
    Format,
    line,
    title_of,
)
from paralab.pages.palette import UNNAMED


@dataclass(frozen=True)
class Limit:
    """A line across a chart, such as the memory that there is."""

    label: str
    value: float


def limit_values(limit: Limit | None) -> list[float]:
    return [] if limit is None else [limit.value]


def limit_key(limit: Limit | None) -> list[Entry]:
    return [] if limit is None else [Entry(limit.label, UNNAMED, "limit")]


def limit_line(limit: Limit, across: Axis, top: float, bottom: float, unit: Format) -> Markup:
    x = across(limit.value)
    return line(x, top, x, bottom, "limit", title_of(f"{limit.label}: {unit(limit.value)}"))
