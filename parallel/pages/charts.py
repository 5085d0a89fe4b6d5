"""Charts as inline SVG: no script, no inline style, colours by meaning from `palette.py` so that both themes work.

Every chart is `WIDTH` units wide and scales with its box; labels stand above what they name, so that they have the
whole width on a phone. Colours are told apart by hatch, marker or label too. All text is escaped.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from markupsafe import Markup

from paralab.pages.marks import (
    CHARACTER,
    LARGEST,
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Entry,
    Format,
    Point,
    area,
    axis,
    grid,
    legend,
    line,
    marker,
    side,
    signed,
    svg,
    tag,
    text,
    title_of,
)
from paralab.pages.palette import UNNAMED, Look

MANY = 30  # points, from which on they are drawn smaller and have no labels
_INSET = 14  # of labels, so that they do not touch the line of zero
_NAME = 216  # units for the name of a point
_SMALL = 6.4  # units of a character of it
_DOWN = (0, -12, 12, -24, 24, -36, 36, -48, 48)  # where a name may stand beside its point
_ENDS = Look("black")  # of a waterfall
Interval = tuple[float, float]


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
class Limit:
    """A line across a chart, such as the memory that there is."""

    label: str
    value: float


@dataclass(frozen=True)
class Spot:
    """A point of a scatter, with the intervals of both numbers where they are known. tip: what is said of it."""

    label: str
    x: float
    y: float
    look: Look = UNNAMED
    x_interval: Interval | None = None
    y_interval: Interval | None = None
    tip: str = ""


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


def scatter(
    spots: Sequence[Spot],
    *,
    title: str,
    units: tuple[Format, Format],
    names: tuple[str, str],
    limit: Limit | None = None,
) -> Markup:
    """Draw points from zero on, and the front of those that no other beats: less of the first, more of the second.

    limit: a line that the first should not cross. Few points have their labels beside them, many a legend below.
    """
    height, few = 240, len(spots) <= MANY and len({spot.label for spot in spots}) == len(spots)
    xs = [v for spot in spots for v in (spot.x, *(spot.x_interval or ()))]
    ys = [v for spot in spots for v in (spot.y, *(spot.y_interval or ()))]
    across = axis([*xs, *_places(limit)], LEFT, WIDTH - RIGHT - 20, zero=True, count=3)
    up = axis(ys, height, 24, zero=True)
    best = pareto([(spot.x, spot.y) for spot in spots if limit is None or spot.x <= limit.value])
    marks = [side(up, units[1]), text(LEFT, 12, names[1], "tick")]
    marks += [text(across(t), height + 16, units[0](t), "tick", anchor="middle") for t in across.ticks]
    marks.append(text(WIDTH - RIGHT, height + 32, names[0], "tick", anchor="end"))
    marks += [_limit(limit, across, 24, height, units[0])] if limit else []
    marks.append(tag("polyline", points=_steps(best, across, up), cls="front"))
    for spot in spots:
        marks += _whiskers(spot, across, up)
        tip = title_of(f"{spot.tip or spot.label}: {units[0](spot.x)}, {units[1](spot.y)}")
        ring = "on-front" if (spot.x, spot.y) in best else ""
        radius = 5 if len(spots) <= MANY else 3.5
        marks.append(marker(across(spot.x), up(spot.y), radius, spot.look, tip=tip, more=ring))
    entries = [] if few else [Entry(spot.label, spot.look, "point") for spot in spots]
    marks += _names_of(spots, across, up, height) if few else []
    more, bottom = legend([*dict.fromkeys(entries), *_key(limit)], height + 46)
    said = [f"{spot.label}: {units[0](spot.x)}, {units[1](spot.y)}" for spot in spots]
    return svg([*marks, *more], bottom if more else height + 38, title, said)


def _whiskers(spot: Spot, across: Axis, up: Axis) -> list[Markup]:
    x, y, cls = across(spot.x), up(spot.y), f"whisker {spot.look.cls}"
    found = []
    if spot.x_interval:
        found.append(line(across(spot.x_interval[0]), y, across(spot.x_interval[1]), y, cls))
    if spot.y_interval:
        found.append(line(x, up(spot.y_interval[0]), x, up(spot.y_interval[1]), cls))
    return found


def _names_of(spots: Sequence[Spot], across: Axis, up: Axis, bottom: float) -> list[Markup]:
    """Write each label beside its point, at the nearest place where it covers no other label and no point."""
    taken = [Box(across(spot.x) - 6, up(spot.y) - 6, across(spot.x) + 6, up(spot.y) + 6) for spot in spots]
    taken += [box for spot in spots for box in _crossed(spot, across, up)]
    found = []
    for spot in sorted(spots, key=lambda spot: up(spot.y)):
        x, y = across(spot.x), up(spot.y)
        wide = min(len(spot.label) * _SMALL, _NAME)
        away, down = _free(x, y, wide, taken, bottom)
        taken.append(_box(x + away, y + down, wide, left=away < 0))
        if abs(down) > 7 or abs(away) > 10:
            found.append(line(x, y, round(x + away, 2), round(y + down, 2), "leader"))
        anchor = "end" if away < 0 else "start"
        place = round(x + away, 2), round(y + down + 4, 2)
        found.append(text(*place, spot.label, "small", anchor=anchor, room=_NAME, full=True))
    return found


def _crossed(spot: Spot, across: Axis, up: Axis) -> Iterator["Box"]:
    """Yield what the intervals of a point cover."""
    x, y = across(spot.x), up(spot.y)
    if spot.x_interval:
        yield Box(across(spot.x_interval[0]), y - 1, across(spot.x_interval[1]), y + 1)
    if spot.y_interval:
        yield Box(x - 1, up(spot.y_interval[1]), x + 1, up(spot.y_interval[0]))


class Box(NamedTuple):
    """A rectangle of a drawing, in units."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: "Box") -> bool:
        """Return whether two have a point in common."""
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.bottom <= other.top or other.bottom <= self.top)


def _box(x: float, y: float, wide: float, *, left: bool) -> Box:
    """Return what a label covers that starts at a place, or ends there."""
    return Box(x - wide if left else x, y - 6, x if left else x + wide, y + 6)


def _free(x: float, y: float, wide: float, taken: Sequence[Box], bottom: float) -> tuple[float, float]:
    """Return how far from a point its label begins, across and down; beside it where no place is free."""
    ways = [(side * away, down) for away in (9, 22, 40, 64) for down in _DOWN for side in (1, -1)]
    for away, down in sorted(ways, key=lambda way: abs(way[0]) + 1.5 * abs(way[1])):
        box = _box(x + away, y + down, wide, left=away < 0)
        inside = LEFT < box.left and box.right < WIDTH and 14 < box.top and box.bottom < bottom
        if inside and not any(box.covers(other) for other in taken):
            return away, down
    return (9, 0) if x + 9 + wide < WIDTH else (-9, 0)


def _places(limit: Limit | None) -> list[float]:
    return [] if limit is None else [limit.value]


def _key(limit: Limit | None) -> list[Entry]:
    return [] if limit is None else [Entry(limit.label, UNNAMED, "limit")]


def _limit(limit: Limit, across: Axis, top: float, bottom: float, unit: Format) -> Markup:
    x = across(limit.value)
    return line(x, top, x, bottom, "limit", title_of(f"{limit.label}: {unit(limit.value)}"))


def pareto(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in both: less of the first number, more of the second."""
    front: list[Point] = []
    for x, y in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _steps(front: Sequence[Point], across: Axis, up: Axis) -> str:
    corners: list[Point] = []
    for x, y in front:
        corners += [(x, corners[-1][1])] if corners else []
        corners.append((x, y))
    return " ".join(f"{across(x)},{up(y)}" for x, y in corners)


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
    inside = [*totals, *map(_end, rows), *_places(limit), *reach]
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
            marks += [_limit(limit, across, y - 2, y + 12, unit)] if limit else []
            y += 15
            continue
        marks.append(text(_INSET, y + 15, row.label, "label", room=WIDTH - 100, full=True))
        marks.append(text(WIDTH - 14, y + 15, unit(total), "value", anchor="end"))
        marks.append(_stack(row, across, y + 20, 13, looks, unit))
        marks += [_limit(limit, across, y + 18, y + 35, unit)] if limit else []
        y += 40
    kinds = dict.fromkeys(kind for row in rows for kind in row.parts)
    entries = [Entry(kind, looks.get(kind, UNNAMED)) for kind in _in_order(kinds, looks)]
    entries += [Entry("predicted", UNNAMED, "predicted")] if any(row.predicted is not None for row in rows) else []
    more, bottom = legend([*entries, *_key(limit)], y + 36)
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
