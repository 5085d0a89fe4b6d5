"""Rows of small pictures of numbers, and a cloud of points. For pictures that stand alone: a page has no images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from paralab.pages import marks
from paralab.pages.marks import WIDTH, Axis, Entry, Point, legend, svg, text
from paralab.pages.palette import MAGNITUDES, SIGNED, Look

_LABEL = 84  # units before the first tile
_GAP = 2
_LARGEST = 40  # units of a tile


@dataclass(frozen=True)
class TileRow:
    """A label, and arrays of numbers: (height, width), or (height, width, 3) for red, green and blue."""

    label: str
    tiles: Sequence[np.ndarray]


def tiles(rows: Sequence[TileRow], *, title: str, signed: bool = False, largest: float | None = None) -> Markup:
    """Draw each row in colours of its own scale, from 0 to its largest number, or to the same one of all rows.

    signed: from its largest number below zero to as much above it, with zero white.
    """
    most = max(len(row.tiles) for row in rows)
    step = min(_LARGEST + _GAP, (WIDTH - _LABEL - 14 + _GAP) / most)
    drawn, y = [], 6.0
    for row in rows:
        drawn.append(text(10, y + step / 2 + 3, row.label, "tick", room=_LABEL))
        scale = largest or max((float(np.abs(tile).max()) for tile in row.tiles), default=0.0) or 1.0
        for number, tile in enumerate(row.tiles):
            pixels = coloured(tile / scale, signed=signed)
            drawn.append(marks.image(_LABEL + number * step, y, step - _GAP, step - _GAP, pixels))
        y += step + _GAP
    return svg(drawn, y + 2, title, [f"{row.label}: {len(row.tiles)} pictures" for row in rows])


def coloured(numbers: np.ndarray, *, signed: bool) -> np.ndarray:
    """Return the colours of numbers (height, width, ...) up to 1 in size: (height, width, 3) of bytes.

    Three numbers of a pixel are red, green and blue: grey where they are zero, if signed.
    """
    shares = (numbers + 1) / 2 if signed else numbers
    if shares.ndim == 3:
        return np.round(255 * shares.clip(0, 1)).astype(np.uint8)
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in (SIGNED if signed else MAGNITUDES)])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(shares, places, stop) for stop in stops.T], axis=-1).round().astype(np.uint8)


def cloud(
    clouds: Mapping[str, tuple[Look, Sequence[Point]]],
    *,
    title: str,
    reach: float,
    radius: float = 1.4,
    paths: Sequence[Sequence[Point]] = (),
) -> Markup:
    """Draw clouds of points by name, the first below, on one scale in both dims from -reach to reach.

    Points that lie farther out are left out, and counted in the legend. paths: thin lines below the points.
    """
    left, side = 34.0, WIDTH - 44.0
    across, up = Axis(-reach, reach, left, left + side), Axis(-reach, reach, 10 + side, 10)
    drawn = [marks.tag("rect", x=left, y=10, width=side, height=side, cls="frame"), *_scale(across, up)]
    for path in paths:
        inside = " ".join(f"{across(x)},{up(y)}" for x, y in path if _reaches(x, y, reach))
        drawn.append(marks.tag("polyline", points=inside, cls="leader"))
    for look, points in clouds.values():
        drawn += [marks.marker(across(x), up(y), radius, look, more="soft") for x, y in points if _reaches(x, y, reach)]
    entries = [
        Entry(name + _outside(sum(not _reaches(*point, reach) for point in points)), look, "point")
        for name, (look, points) in clouds.items()
    ]
    more, bottom = legend(entries, side + 46)
    said = [f"{name}: {len(points)} points" for name, (_, points) in clouds.items()]
    return svg([*drawn, *more], bottom, title, said)


def _scale(across: Axis, up: Axis) -> Iterator[Markup]:
    """Write the whole numbers along the left and the lower side of a cloud, each with a short line inwards."""
    stride = -(-int(across.high) // 4) or 1
    most = int(across.high) // stride * stride
    for number in range(-most, most + 1, stride):
        yield marks.line(across(number), up.start, across(number), up.start - 4, "zero")
        yield text(across(number), up.start + 14, f"{number}", "tick", anchor="middle")
        yield marks.line(across.start, up(number), across.start + 4, up(number), "zero")
        yield text(across.start - 6, up(number) + 4, f"{number}", "tick", anchor="end")


def _outside(number: int) -> str:
    return f" ({number} outside)" if number else ""


def _reaches(x: float, y: float, reach: float) -> bool:
    return abs(x) <= reach and abs(y) <= reach
