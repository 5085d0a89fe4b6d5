"""What charts are made of: axes of round numbers, elements of SVG, hatches, markers, legends. All text is escaped."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from math import floor, log10
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from paralab.pages.palette import Look

if TYPE_CHECKING:
    import numpy as np

WIDTH = 420
LEFT, RIGHT = 56, 14  # margins of a chart with a vertical axis
LARGEST = 1e250  # what is beyond it, or not a number, is left out
CHARACTER = 7.7  # width of one at the size of a label
MOST_SAID = 24  # parts of a description
_FAR = 1e4  # units
_HATCHING = 6.0  # units between lines

Format = Callable[[float], str]
Point = tuple[float, float]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Map values to units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float] = field(default=())

    def __call__(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 2)


def axis(values: Iterable[float], start: float, end: float, *, zero: bool = False, count: int = 4) -> Axis:
    """Return an axis over round numbers that holds all values, and zero if asked."""
    finite = [value for value in values if abs(value) < LARGEST] or [0.0]
    low, high = min(finite), max(finite)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    biggest = max(abs(low), abs(high))
    spread = high - low if high - low > 1e-9 * biggest else biggest
    step = _round_step(spread / count if spread > 1 / LARGEST else 1.0)
    first, last = floor(low / step), -floor(-high / step)
    ticks = [n * step for n in range(first, max(last, first + 1) + 1)]
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def _round_step(raw: float) -> float:
    """Return the next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power = 10.0 ** floor(log10(raw))
    return next(power * base for base in (1, 2, 2.5, 5, 10) if power * base >= raw * 0.999)


def grid(across: Axis, top: float, bottom: float, unit: Format) -> Markup:
    """Draw the lines of a horizontal axis, and its numbers below them."""
    marks = [line(across(t), top, across(t), bottom, "zero" if t == 0 else "grid") for t in across.ticks]
    last = len(across.ticks) - 1
    names = _without_units([unit(t) for t in across.ticks])
    anchors = ["start" if i == 0 else "end" if i == last else "middle" for i in range(last + 1)]
    room = across(across.ticks[-1])  # the last number ends where the axis does
    for i, (t, anchor) in reversed(list(enumerate(zip(across.ticks, anchors, strict=True)))):
        wide = 0.9 * CHARACTER * len(names[i])
        ends = across(t) + {"start": wide, "middle": wide / 2, "end": 0.0}[anchor]
        if i == last or ends + 4 < room:
            marks.append(text(across(t), bottom + 15, names[i], "tick", anchor=anchor))
            room = ends - wide
    return Markup("").join(marks)


def _without_units(names: Sequence[str]) -> list[str]:
    """Return the names of ticks with a unit that they share on the last of them alone: 0, 500, 1,000 ms."""
    units = {name.rpartition(" ")[2] if " " in name else "" for name in names if name != "0"}
    if len(units) != 1:
        return list(names)
    return [*(name.rpartition(" ")[0] or name for name in names[:-1]), names[-1]]


def side(up: Axis, unit: Format, *, right: float = WIDTH - RIGHT, logarithmic: bool = False) -> Markup:
    """Draw the lines of a vertical axis, and its numbers beside them. Where they are logarithms none is zero."""
    marks = [line(LEFT, up(t), right, up(t), "zero" if t == 0 and not logarithmic else "grid") for t in up.ticks]
    return Markup("").join([*marks, *(text(LEFT - 6, up(t) + 4, unit(t), "tick", anchor="end") for t in up.ticks)])


@dataclass(frozen=True)
class Entry:
    """What a legend says of a look. kind: "area", "line", "point", or the class of a line of its own."""

    label: str
    look: Look
    kind: str = "area"


def legend(entries: Sequence[Entry], top: float, *, width: int = WIDTH) -> tuple[list[Markup], float]:
    """Return the entries, wrapped into lines, and where the drawing ends."""
    marks: list[Markup] = []
    x, y = 10.0, top
    for entry in entries:
        shown = shortened(entry.label, width - 50)
        wide = 22 + CHARACTER * len(shown) + 14
        if x > 10 and x + wide > width:
            x, y = 10.0, y + 20
        marks += [_key(entry, x, y), text(x + 22, y + 4, shown, "label")]
        x += wide
    return marks, y + 14


def _key(entry: Entry, x: float, y: float) -> Markup:
    if entry.kind == "area":
        return area(x, y - 6, 16, 12, entry.look)
    if entry.kind == "point":
        return marker(x + 8, y, 5, entry.look)
    if entry.kind == "idle":
        return tag("rect", x=x, y=y - 5, width=16, height=10, cls="idle")
    cls = entry.look.cls if entry.kind == "line" else entry.kind
    return line(x, y, x + 16, y, f"key {cls}")


def area(
    x: float, y: float, width: float, height: float, look: Look, *, tip: Markup | None = None, cls: str = "fill"
) -> Markup:
    """Draw a rectangle in a colour, and over it the hatch of its look."""
    children = [tip] if tip else []
    box = tag("rect", *children, x=x, y=y, width=width, height=height, cls=f"{cls} {look.cls}")
    lines = hatch(x, y, width, height, look.hatch)
    return box + tag("path", d=lines, cls="hatch") if lines else box


def hatch(x: float, y: float, width: float, height: float, kind: str) -> str:
    """Return the lines of a hatch within a rectangle, as the data of a path; none where it is too narrow for one.

    None either where the rectangle is larger than any drawing: of a number that is hardly one.
    """
    if not all(abs(number) < _FAR for number in (x, y, width, height)):
        return ""
    right, bottom = x + width, y + height
    if kind == "x":
        return " ".join(filter(None, (hatch(x, y, width, height, way) for way in "/\\")))
    ends: list[tuple[float, float, float, float]] = []
    if kind == "|":
        ends = [(at, y, at, bottom) for at in _steps(x, right)]
    elif kind == "-":
        ends = [(x, at, right, at) for at in _steps(y, bottom)] if width >= 2 else []
    elif kind == "/":  # x + y is the same along a line
        for at in _steps(x + y, right + bottom):
            ends.append((max(x, at - bottom), min(bottom, at - x), min(right, at - y), max(y, at - right)))
    elif kind == "\\":  # x - y is
        for at in _steps(x - bottom, right - y):
            ends.append((max(x, at + y), max(y, x - at), min(right, at + bottom), min(bottom, right - at)))
    return " ".join(f"M{a:.4g} {b:.4g}L{c:.4g} {d:.4g}" for a, b, c, d in ends)


def _steps(low: float, high: float) -> list[float]:
    """Return the places of hatching between two: the same in neighbouring areas, so that one hatch goes on."""
    first = floor(low / _HATCHING) + 1
    return [n * _HATCHING for n in range(first, int(-(-high // _HATCHING)))]


_CORNERS = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "up": ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    "down": ((0, 1.2), (1.15, -0.9), (-1.15, -0.9)),
    "cross": ((0, -0.4), (0.8, -1.2), (1.2, -0.8), (0.4, 0), (1.2, 0.8), (0.8, 1.2), (0, 0.4), (-0.8, 1.2),
              (-1.2, 0.8), (-0.4, 0), (-1.2, -0.8), (-0.8, -1.2)),
}  # fmt: skip


def marker(x: float, y: float, radius: float, look: Look, *, tip: Markup | None = None, more: str = "") -> Markup:
    """Draw a point in the shape of its look."""
    children, cls = [tip] if tip else [], f"mark {look.cls} {more}"
    if look.marker not in _CORNERS:
        return tag("circle", *children, cx=x, cy=y, r=radius, cls=cls)
    corners = " ".join(f"{round(x + radius * a, 2)},{round(y + radius * b, 2)}" for a, b in _CORNERS[look.marker])
    return tag("polygon", *children, points=corners, cls=cls)


def apart(wanted: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Return places near the wanted ones, in their order, at least `least` apart, and within the limits if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places: list[float] = []
    for i in order:
        places.append(max(wanted[i], places[-1] + least if places else low))
    ceiling = high
    for n in reversed(range(len(places))):
        places[n] = min(places[n], ceiling)
        ceiling = places[n] - least
    found = [0.0] * len(wanted)
    for i, place in zip(order, places, strict=True):
        found[i] = round(place, 2)
    return found


def svg(marks: Sequence[Markup], height: float, title: str, said: Sequence[str], *, width: int = WIDTH) -> Markup:
    """Return the whole drawing, with what is said to those who do not see it. said: what it shows, in order."""
    box = f"0 0 {width} {round(height)}"
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}" class="chart{}"><desc>{}</desc>').format(
        box, title, " wide" if width > WIDTH else "", described(said)
    )
    return head + Markup("").join(marks) + Markup("</svg>")


def described(said: Sequence[str]) -> str:
    """Return what a drawing shows as one text: the first of many, and how many more there are."""
    more = [f"and {len(said) - MOST_SAID} more"] if len(said) > MOST_SAID else []
    return "; ".join([*said[:MOST_SAID], *more])


def tag(name: str, *children: Markup, cls: str, **attributes: float | str) -> Markup:
    """Return an element."""
    given = Markup(" ").join(Markup('{}="{}"').format(key, value) for key, value in attributes.items())
    return Markup('<{0} {1} class="{2}">{3}</{0}>').format(name, given, cls.strip(), Markup("").join(children))


def image(x: float, y: float, width: float, height: float, pixels: "np.ndarray") -> Markup:
    """Return pixels (rows, columns, 3), of bytes, in a rectangle: each with sharp edges."""
    from PIL import Image

    content = BytesIO()
    Image.fromarray(pixels).save(content, "png")
    uri = f"data:image/png;base64,{b64encode(content.getvalue()).decode()}"
    place = {"x": round(x, 2), "y": round(y, 2), "width": round(width, 2), "height": round(height, 2)}
    return tag("image", cls="pixels", href=uri, preserveAspectRatio="none", **place)


def signed(number: float, unit: Format) -> str:
    """Return a difference as text, with its sign."""
    return f"{'-' if number < 0 else '+'}{unit(abs(number))}"


def line(x1: float, y1: float, x2: float, y2: float, cls: str, *children: Markup) -> Markup:
    """Return a line from one point to another."""
    return tag("line", *children, cls=cls, x1=x1, y1=y1, x2=x2, y2=y2)


def title_of(words: str) -> Markup:
    """Return what is shown where a pointer rests on the element around it."""
    return Markup("<title>{}</title>").format(words)


def text(
    x: float, y: float, words: str, cls: str, *, anchor: str = "start", room: float = 1e9, full: bool = False
) -> Markup:
    """Write text, shortened to the room it has; `full` keeps the whole of it as a tooltip."""
    shown = shortened(words, room)
    tip = title_of(words) if full and shown != words else Markup("")
    return tag("text", escape(shown), tip, cls=cls, x=x, y=y, **{"text-anchor": anchor})


def shortened(words: str, room: float) -> str:
    """Return text that fits so many units at the size of a label."""
    most = int(room / CHARACTER) if room < 1e9 else len(words)
    return words if len(words) <= most else words[: max(most - 1, 1)] + "…"
