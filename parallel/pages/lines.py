"""Lines over an axis, each with its name at its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, log, log10

from markupsafe import Markup

from paralab.pages.marks import (
    LARGEST,
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Entry,
    Format,
    Point,
    apart,
    axis,
    legend,
    line,
    marker,
    side,
    svg,
    tag,
    text,
    title_of,
)
from paralab.pages.palette import UNNAMED, Look

MOST_POINTS = 200  # of a line, where there may be any number of them
_HEIGHT = 200
_NAMED = 112  # units at the end of lines for their names
_LONGEST = 18  # characters of a name that stands there; with a longer one there is a legend below
_MOST_DECADES = 16  # of a logarithmic axis: what is smaller counts as zero


@dataclass(frozen=True)
class Series:
    """A line of points. The reference is drawn thick and pale, below the others.

    intervals: of values, by their place on the horizontal axis. spots: points beside the line, drawn as markers.
    """

    label: str
    points: Sequence[Point]
    reference: bool = False
    look: Look = UNNAMED
    intervals: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    spots: Sequence[Point] = ()


def lines(
    series: Sequence[Series],
    *,
    title: str,
    unit: Format,
    along: str,
    zero: bool = False,
    every: bool = False,
    doubling: bool = False,
    decades: bool = False,
    powers: bool = False,
) -> Markup:
    """Draw lines with their names at their ends; with a legend where a name is long.

    `along` names the horizontal axis. `every` marks each point and ticks each place: a line is whole between places of
    which one is at most twice the other and none that others have lies between, and dotted where a place was left out.
    `doubling` makes each doubling of the horizontal value as wide as the one before, `powers` each power of ten.
    `decades` makes the vertical axis logarithmic; zeros stand at its foot.
    """
    named = all(len(one.label) <= _LONGEST for one in series)
    right = WIDTH - (_NAMED if named else RIGHT)
    base = 2 if doubling else 10 if powers else None
    plane = _plane(series, right, unit, zero=zero, every=every, base=base, decades=decades)
    marks = [side(plane.up, plane.name_of, right=right, logarithmic=decades), *_foot(plane, along, right)]
    shown = [(one, [(*plane.at(point), *point) for point in one.points if abs(point[1]) < LARGEST]) for one in series]
    taken = sorted({x for one in series for x, _ in (*one.points, *one.spots)}) if every else []
    for one, points in sorted(shown, key=lambda pair: not pair[0].reference):
        marks += _drawn(one.label, points, "reference" if one.reference else one.look.cls, taken)
        marks += _intervals(one, plane)
        if every and not one.reference:
            marks += [marker(x, y, 3.5, one.look, tip=title_of(f"{one.label}: {unit(value)} at {place:g}"))
                      for x, y, place, value in points]  # fmt: skip
        marks += [marker(*plane.at(spot), 4, one.look, tip=title_of(f"{one.label}, held out: {unit(spot[1])}"))
                  for spot in one.spots]  # fmt: skip
    said = [_said(one, unit, along) for one in series if one.points]
    if named:
        return svg([*marks, *_names(shown, right)], _HEIGHT + 40, title, said)
    kind = "point" if every else "line"
    entries = [Entry(one.label, one.look, "reference" if one.reference else kind) for one in series]
    more, bottom = legend(entries, _HEIGHT + 50)
    return svg([*marks, *more], bottom, title, said)


def _said(one: Series, unit: Format, along: str) -> str:
    (first, began), (last, ended) = one.points[0], one.points[-1]
    return f"{one.label}: {unit(began)} at {along} {first:g}, {unit(ended)} at {last:g}"


@dataclass(frozen=True)
class _Plane:
    """Where values are drawn.

    name_of: what a tick of the vertical axis is called. base: of a logarithmic horizontal axis; None of a linear one.
    decades: whether the vertical axis is logarithmic.
    """

    across: Axis
    up: Axis
    name_of: Format
    base: int | None
    decades: bool

    def at(self, point: Point) -> Point:
        """Return where a point is drawn."""
        x, y = point
        return self.across(_widened(x, self.base)), self.up(_log(y, self.up.low) if self.decades else y)


def _widened(x: float, base: int | None) -> float:
    return log(x, base) if base else float(x)


def _plane(
    series: Sequence[Series], right: float, unit: Format, *, zero: bool, every: bool, base: int | None, decades: bool
) -> _Plane:
    """Return axes that hold all points, spots and intervals. The options are those of `lines`."""
    values = [y for one in series for _, y in (*one.points, *one.spots)]
    values += [edge for one in series for interval in one.intervals.values() for edge in interval]
    up, name_of = _decades(values, unit) if decades else (axis(values, _HEIGHT, 12, zero=zero), unit)
    places = sorted({_widened(x, base) for one in series for x, _ in (*one.points, *one.spots)})
    if every:
        across = Axis(places[0], places[-1], LEFT + 8, right - 8, places)
    elif base == 10:
        first, last = floor(places[0]), ceil(places[-1])
        across = Axis(first, last, LEFT, right, range(first, last + 1, 1 if last - first < 5 else 2))
    else:
        across = axis(places, LEFT, right)
    return _Plane(across, up, name_of, base, decades)


def _foot(plane: _Plane, along: str, right: float) -> list[Markup]:
    """Write the ticks of the horizontal axis, and its name."""
    across = plane.across
    names = [(across(tick), f"{float(plane.base) ** tick if plane.base else tick:g}") for tick in across.ticks]
    ticks = [text(x, _HEIGHT + 16, name, "tick", anchor="middle") for x, name in names]
    return [*ticks, text(right, _HEIGHT + 32, along, "tick", anchor="end")]


Placed = tuple[float, float, float, float]  # where a point is drawn, and what it stands for


def _drawn(label: str, points: Sequence[Placed], cls: str, taken: Sequence[float]) -> list[Markup]:
    """Draw a line; dotted between points that are no neighbours in `taken`, or not a doubling apart."""
    runs: list[list[Placed]] = []
    gaps: list[Markup] = []
    for point in points:
        if runs and taken and not _are_neighbours(runs[-1][-1][2], point[2], taken):
            x, y, *_ = runs[-1][-1]
            gaps.append(line(x, y, point[0], point[1], f"line gap {cls}"))
            runs.append([point])
        elif runs:
            runs[-1].append(point)
        else:
            runs.append([point])
    whole = [run for run in runs if len(run) > 1]
    for run in whole:
        places = " ".join(f"{x},{y}" for x, y, *_ in run)
        gaps.append(tag("polyline", title_of(label), points=places, cls=f"line {cls}"))
    return gaps


def _are_neighbours(a: float, b: float, taken: Sequence[float]) -> bool:
    low, high = min(a, b), max(a, b)
    return high <= 2 * low and not any(low < x < high for x in taken)


def _intervals(one: Series, plane: _Plane) -> list[Markup]:
    ends = [(plane.at((x, low)), plane.at((x, top))) for x, (low, top) in one.intervals.items()]
    return [line(*low, *top, f"whisker {one.look.cls}") for low, top in ends]


def _names(shown: Sequence[tuple[Series, Sequence[Placed]]], right: float) -> list[Markup]:
    """Write each name at the end of its line, none over another."""
    ended = [(one, points[-1]) for one, points in shown if points]
    places = apart([point[1] for _, point in ended], 13, 14, _HEIGHT + 4)
    found = []
    for (one, (x, y, *_)), place in zip(ended, places, strict=True):
        found.append(line(x + 4, y, right + 6, place, "leader"))
        found.append(line(right + 8, place, right + 18, place, f"key {'reference' if one.reference else one.look.cls}"))
        found.append(text(right + 21, place + 4, one.label, "small"))
    return found


def _decades(values: Sequence[float], unit: Format) -> tuple[Axis, Format]:
    """Return an axis over logarithms, with a tick at powers of ten, and one for zero where there are zeros."""
    logs = [log10(abs(y)) for y in values if 0 < abs(y) < LARGEST] or [0.0]
    high = ceil(max(logs))
    low = max(floor(min(logs)), high - _MOST_DECADES)
    low, high = (low, high) if high > low else (low, low + 1)
    foot = low - 1 if any(y == 0 or (y and log10(abs(y)) < low) for y in values if abs(y) < LARGEST) else low
    step = max(1, -(-(high - low) // 5))
    ticks = [*([foot] if foot < low else []), *range(low, high + 1, step)]
    return Axis(foot, high, _HEIGHT, 12, ticks), lambda t: "0" if t < low else unit(10.0**t)


def _log(value: float, foot: float) -> float:
    return max(log10(abs(value)), foot) if value and abs(value) < LARGEST else foot


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most so many points: all where they are few, else each n-th."""
    return list(points[:: -(-len(points) // most) or 1])


def same_within(one: Series, other: Series, share: float) -> bool:
    """Return whether two lines have the same places, and values that differ by no more than this share of them."""
    return len(one.points) == len(other.points) and all(
        x == u and abs(y - v) <= share * max(abs(y), abs(v))
        for (x, y), (u, v) in zip(one.points, other.points, strict=True)
    )


def merged(series: Sequence[Series], share: float) -> list[Series]:
    """Return one line for those that are the same within a share, with all their names; a reference keeps its own."""
    found: list[tuple[Series, list[str]]] = []
    for one in series:
        same = next((pair for pair in found if not (one.reference or pair[0].reference or one.spots) and
                     same_within(pair[0], one, share)), None)  # fmt: skip
        if same:
            same[1].append(one.label)
        else:
            found.append((one, [one.label]))
    return [replace(one, label=_together(labels)) for one, labels in found]


def _together(labels: Sequence[str]) -> str:
    whole = ", ".join(labels)
    return whole if len(whole) <= _LONGEST or len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"
