"""Dots, bars and waterfalls as inline SVG, without script and inline style, in the colours of `palette.py`.

Every chart is `WIDTH` units wide and scales with its box; labels stand above what they name, so that they have the
whole width on a phone. Colours are told apart by hatch, marker or label too. All text is escaped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from paralab.pages.limits import Limit, limit_key, limit_line, limit_values
from paralab.pages.marks import (
    CHARACTER,
    LARGEST,
    WIDTH,
    Axis,
    Entry,
    Format,
    Interval,
    area,
    axis,
    grid,
    legend,
    line,
    marker,
    signed,
    svg,
    tag,
    text,
    title_of,
)
from paralab.pages.palette import UNNAMED, Look

_INSET = 14  # of labels, so that they do not touch the line of zero
_ENDS = Look("black")  # of a waterfall


@dataclass(frozen=True)
class Row:
    """A line of dots: one for each run, with the interval of their median where it is known.

    group: a heading above the first row of those that have it.
    """

    label: str
    values: Sequence[float]
    median: float
    interval: Interval | None = None
    look: Look = UNNAMED
    group: str = ""


@dataclass(frozen=True)
class Bar:
    """Parts of a whole, in order, and optionally a predicted whole that is drawn as a tick.

    interval: where the whole lies over runs, drawn as a thin line.

    group: a heading above the first bar of those that have it; they are thin, and their labels stand beside them.
    """

    label: str
    parts: Mapping[str, float]
    predicted: float | None = None
    group: str = ""
    interval: Interval | None = None


@dataclass(frozen=True)
class Step:
    """What a step of a waterfall adds, or takes away below zero, with the interval of that where it is known."""

    name: str
    more: float
    look: Look = UNNAMED
    interval: Interval | None = None


def dots(rows: Sequence[Row], *, title: str, unit: Format, reach: Iterable[float] = ()) -> Markup:
    """Draw one dot for each run, a bar at the median and a band for its interval, from zero on.

    reach: what the axis holds besides, so that charts that stand together have one scale.
    """
    inside = [v for row in rows for v in (row.median, *row.values, *(row.interval or ()))]
    start, end = _sides(rows)
    across = axis([*inside, *reach], start, end, zero=True)
    marks: list[Markup] = []
    y, group = 10.0, ""
    for row in rows:
        if row.group and row.group != group:
            marks.append(text(10, y + 14, row.group, "label", room=WIDTH - 20, full=True))
            y += 18
        group = row.group
        if row.group:
            marks += [_row_of_dots(row, across, y + 10, unit), *_beside(row.label, unit(row.median), y + 14, start)]
            y += 20
            continue
        marks.append(text(_INSET, y + 16, row.label, "label", room=WIDTH - 100, full=True))
        marks.append(text(WIDTH - 14, y + 16, unit(row.median), "value", anchor="end"))
        marks.append(_row_of_dots(row, across, y + 30, unit))
        y += 42
    said = [f"{row.group} {row.label}: {unit(row.median)}".strip() for row in rows]
    return svg([grid(across, 10, y, unit), *marks], y + 24, title, said)


def _sides(rows: Sequence[Row] | Sequence[Bar]) -> tuple[float, float]:
    """Return where a horizontal axis starts and ends: between labels and numbers where these stand beside the rows."""
    if not any(row.group for row in rows):
        return 10, WIDTH - 26
    longest = max(len(row.label) for row in rows)
    return min(20 + 0.92 * CHARACTER * longest, WIDTH / 2), WIDTH - 84


def _beside(label: str, number: str, y: float, start: float) -> list[Markup]:
    """Write a label before the axis and a number behind it."""
    return [
        text(start - 6, y, label, "tick", anchor="end", room=WIDTH / 2, full=True),
        text(WIDTH - 14, y, number, "value tick", anchor="end"),
    ]


def _row_of_dots(row: Row, across: Axis, y: float, unit: Format) -> Markup:
    marks = []
    if row.interval:
        low, high = map(across, row.interval)
        marks.append(tag("rect", x=low, y=y - 6, width=round(high - low, 2), height=12, cls=f"band {row.look.cls}"))
    for value in row.values:
        if abs(value) < LARGEST:
            tip = title_of(f"{row.group} {row.label}: {unit(value)}".strip())
            marks.append(marker(across(value), y, 3.2, row.look, tip=tip, more="soft dot"))
    if len(row.values) != 1:
        marks.append(line(across(row.median), y - 8, across(row.median), y + 8, "median"))
    return Markup("").join(marks)


def bars(
    rows: Sequence[Bar],
    *,
    looks: Mapping[str, Look],
    title: str,
    unit: Format,
    limit: Limit | None = None,
    reach: Iterable[float] = (),
) -> Markup:
    """Draw stacked bars from zero on, their sum beside them, a tick where it was predicted, and the limit of all.

    looks: of each part. reach: what the axis holds besides, so that charts that stand together have one scale.
    """
    rows = [replace(row, parts={kind: size for kind, size in row.parts.items() if size < LARGEST}) for row in rows]
    totals = [sum(row.parts.values()) for row in rows]
    start, end = _sides(rows)
    inside = [*totals, *map(_end, rows), *limit_values(limit), *reach]
    across = axis(inside, start, end, zero=True)
    marks: list[Markup] = []
    y, group = 10.0, ""
    for row, total in zip(rows, totals, strict=True):
        if row.group and row.group != group:
            marks.append(text(10, y + 14, row.group, "label", room=WIDTH - 20, full=True))
            y += 20
        group = row.group
        if row.group:
            marks += [_stack(row, across, y, 10, looks, unit), *_beside(row.label, unit(total), y + 9, start)]
            marks += [limit_line(limit, across, y - 2, y + 12, unit)] if limit else []
            y += 15
            continue
        marks.append(text(_INSET, y + 15, row.label, "label", room=WIDTH - 100, full=True))
        marks.append(text(WIDTH - 14, y + 15, unit(total), "value", anchor="end"))
        marks.append(_stack(row, across, y + 20, 13, looks, unit))
        marks += [limit_line(limit, across, y + 18, y + 35, unit)] if limit else []
        y += 40
    kinds = dict.fromkeys(kind for row in rows for kind in row.parts)
    entries = [Entry(kind, looks.get(kind, UNNAMED)) for kind in _in_order(kinds, looks)]
    entries += [Entry("predicted", UNNAMED, "predicted")] if any(row.predicted is not None for row in rows) else []
    more, bottom = legend([*entries, *limit_key(limit)], y + 36)
    said = [f"{f'{row.group} {row.label}'.strip()}: {unit(total)}" for row, total in zip(rows, totals, strict=True)]
    return svg([grid(across, 10, y, unit), *marks, *more], bottom, title, said)


def _stack(row: Bar, across: Axis, y: float, height: float, looks: Mapping[str, Look], unit: Format) -> Markup:
    at, marks = 0.0, []
    name = f"{row.group} {row.label}".strip()
    for kind in _in_order(row.parts, looks):
        part = row.parts[kind]
        wide = round(across(at + part) - across(at), 2)
        tip = title_of(f"{name}, {kind}: {unit(part)}")
        marks.append(area(across(at), y, wide, height, looks.get(kind, UNNAMED), tip=tip))
        at += part
    if row.interval:
        low, high = map(across, row.interval)
        marks.append(line(low, y + height / 2, high, y + height / 2, "median"))
    if row.predicted is not None:
        tip = title_of(f"{name}, predicted: {unit(row.predicted)}")
        marks.append(line(across(row.predicted), y - 2, across(row.predicted), y + height + 2, "predicted", tip))
    return Markup("").join(marks)


def _in_order(kinds: Iterable[str], looks: Mapping[str, Look]) -> list[str]:
    """Return the parts in the order of their looks; those without one come last."""
    known = list(kinds)
    return [*(kind for kind in looks if kind in known), *(kind for kind in known if kind not in looks)]


def waterfall(
    first: tuple[str, float],
    last: tuple[str, float],
    steps: Sequence[Step],
    *,
    title: str,
    unit: Format,
    reach: Iterable[float] = (),
) -> Markup:
    """Draw the way from one amount to another: a bar of each, and between them what every step adds or takes away."""
    rows: list[tuple[Step, float, float]] = [(Step(first[0], first[1], _ENDS), 0.0, first[1])]
    at = first[1]
    for step in steps:
        rows.append((step, at, at + step.more))
        at += step.more
    rows.append((Step(last[0], last[1], _ENDS), 0.0, last[1]))
    edges = [a + edge for step, a, _ in rows for edge in step.interval or ()]
    across = axis([*(x for _, a, b in rows for x in (a, b)), *edges, *reach], 10, WIDTH - 26, zero=True)
    height, marks, told = 40, [grid(across, 10, 10 + 40 * len(rows), unit)], []
    for i, (step, a, b) in enumerate(rows):
        y, whole = 10 + height * i + 20, i in (0, len(rows) - 1)
        said = unit(b) if whole else signed(b - a, unit)
        told.append(f"{step.name}: {said}")
        marks.append(text(_INSET, y - 5, step.name, "label", room=WIDTH - 100, full=True))
        marks.append(text(WIDTH - 14, y - 5, said, "value", anchor="end"))
        wide = round(max(abs(across(b) - across(a)), 0.8), 2)
        marks.append(area(min(across(a), across(b)), y, wide, 13, step.look, tip=title_of(told[-1])))
        if step.interval:
            low, top = (across(a + edge) for edge in step.interval)
            marks.append(line(low, y + 6.5, top, y + 6.5, "median"))
    return svg(marks, 10 + height * len(rows) + 26, title, told)


def reaching(rows: Iterable[Bar]) -> float:
    """Return how far the longest bar reaches, its prediction included."""
    return max((max(sum(row.parts.values()), _end(row)) for row in rows), default=0.0)


def _end(row: Bar) -> float:
    """Return how far what is drawn beside the parts of a bar reaches."""
    return max(row.predicted or 0.0, *(row.interval or (0.0, 0.0)))
