"""Scatters: points with their names and intervals, and the front of those that no other beats."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from paralab.pages.limits import Limit, limit_key, limit_line, limit_values
from paralab.pages.marks import (
    LEFT,
    RIGHT,
    WIDTH,
    Axis,
    Entry,
    Format,
    Interval,
    Point,
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

MANY = 30  # points, from which on they are drawn smaller and have no labels
_NAME = 216  # units for the name of a point
_SMALL = 6.4  # units of a character of it
_DOWN = (0, -12, 12, -24, 24, -36, 36, -48, 48)  # where a name may stand beside its point


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
    across = axis([*xs, *limit_values(limit)], LEFT, WIDTH - RIGHT - 20, zero=True, count=3)
    up = axis(ys, height, 24, zero=True)
    best = pareto([(spot.x, spot.y) for spot in spots if limit is None or spot.x <= limit.value])
    marks = [side(up, units[1]), text(LEFT, 12, names[1], "tick")]
    marks += [text(across(t), height + 16, units[0](t), "tick", anchor="middle") for t in across.ticks]
    marks.append(text(WIDTH - RIGHT, height + 32, names[0], "tick", anchor="end"))
    marks += [limit_line(limit, across, 24, height, units[0])] if limit else []
    marks.append(tag("polyline", points=_steps(best, across, up), cls="front"))
    for spot in spots:
        marks += _whiskers(spot, across, up)
        tip = title_of(f"{spot.tip or spot.label}: {units[0](spot.x)}, {units[1](spot.y)}")
        ring = "on-front" if (spot.x, spot.y) in best else ""
        radius = 5 if len(spots) <= MANY else 3.5
        marks.append(marker(across(spot.x), up(spot.y), radius, spot.look, tip=tip, more=ring))
    entries = [] if few else [Entry(spot.label, spot.look, "point") for spot in spots]
    marks += _names_of(spots, across, up, height) if few else []
    more, bottom = legend([*dict.fromkeys(entries), *limit_key(limit)], height + 46)
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
