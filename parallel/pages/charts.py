"""Charts as inline SVG: no script, no inline style, colours from the classes of `page.css` so that both themes work.

Every chart is `WIDTH` units wide and scales with its box; labels stand above what they name, so that they have the
whole width on a phone. Colours are told apart by shape or dash too. All text is escaped.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, log2, log10

from markupsafe import Markup, escape

WIDTH = 420
LEFT, RIGHT = 56, 14  # margins of a chart with a vertical axis
COLOURS = 8  # classes c0 to c7
LARGEST = 1e250  # what is beyond it, or not a number, is left out
MANY = 30  # points, from which on they are drawn smaller
CHARACTER = 7.7  # width of one at the size of a label

Format = Callable[[float], str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A line of dots: one for each run, with the interval of their median where it is known."""

    label: str
    values: Sequence[float]
    median: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """A line of points. The reference is drawn thick and pale, below the others."""

    label: str
    points: Sequence[Point]
    reference: bool = False


@dataclass(frozen=True)
class Bar:
    """Parts of a whole, in order, and optionally a predicted whole that is drawn as a tick."""

    label: str
    parts: Mapping[str, float]
    predicted: float | None = None


@dataclass(frozen=True)
class Limit:
    """A line across a chart, such as the memory that there is."""

    label: str
    value: float


@dataclass(frozen=True)
class Span:
    """A box on a timeline: `kind` is the class of its colour, `pale` sets it apart from others of its row."""

    row: str
    kind: str
    text: str
    start: float
    end: float
    pale: bool = False
    note: str = ""


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


def dots(rows: Sequence[Row], *, title: str, unit: Format) -> Markup:
    """Draw one dot for each run, a bar at the median and a band for its interval."""
    across = axis([v for row in rows for v in (*row.values, *(row.interval or ()))], 10, WIDTH - 26)
    height, marks = 42, [_grid(across, 10, 10 + 42 * len(rows), unit)]
    for i, row in enumerate(rows):
        y = 10 + height * i + 30
        marks.append(_text(10, y - 14, row.label, "label", room=WIDTH - 100, full=True))
        marks.append(_text(WIDTH - 14, y - 14, unit(row.median), "value", anchor="end"))
        if row.interval:
            low, high = map(across, row.interval)
            marks.append(_tag("rect", x=low, y=y - 6, width=round(high - low, 2), height=12, cls="band"))
        for value in row.values:
            tip = _title(f"{row.label}: {unit(value)}")
            marks.append(_tag("circle", tip, cx=across(value), cy=y, r=3.5, cls="dot"))
        marks.append(_line(across(row.median), y - 8, across(row.median), y + 8, "median"))
    return _svg(marks, 10 + height * len(rows) + 24, title)


def lines(
    series: Sequence[Series],
    *,
    title: str,
    unit: Format,
    along: str,
    zero: bool = False,
    every: bool = False,
    doubling: bool = False,
    palette: Sequence[str] = (),
) -> Markup:
    """Draw lines with a legend.

    `along` names the horizontal axis; `every` marks each point and ticks each place; `doubling` makes each doubling of
    the horizontal value as wide as the one before; `palette` are the labels that take their colours first, so that
    charts that stand together agree.
    """
    if doubling:
        series = [replace(one, points=[(log2(x), y) for x, y in one.points]) for one in series]
    height, points = 200, [point for one in series for point in one.points]
    up = axis([y for _, y in points], height, 12, zero=zero)
    across = axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    if every:
        places = sorted({x for x, _ in points})
        across = Axis(places[0], places[-1], LEFT + 8, WIDTH - RIGHT - 8, places)
    name = _power if doubling else _plain
    marks = [_side(up, unit), *(_text(across(t), height + 16, name(t), "tick", anchor="middle") for t in across.ticks)]
    marks.append(_text(WIDTH - RIGHT, height + 32, along, "tick", anchor="end"))
    coloured = _coloured([*palette, *(one.label for one in series if not one.reference)])
    for one in sorted(series, key=lambda s: not s.reference):
        cls = "reference" if one.reference else coloured[one.label]
        path = " ".join(f"{across(x)},{up(y)}" for x, y in one.points if abs(y) < LARGEST)
        marks.append(_tag("polyline", _title(one.label), points=path, cls=f"line {cls}"))
        if every and not one.reference:
            for x, y in one.points:  # few, and efficiencies
                tip = _title(f"{one.label}: {unit(y)} at {name(x)}")
                marks.append(_tag("circle", tip, cx=across(x), cy=up(y), r=3, cls=f"fill {cls}"))
    shown = [(one.label, "reference" if one.reference else coloured[one.label]) for one in series]
    legend, bottom = _legend(shown, height + 46)
    return _svg([*marks, *legend], bottom, title)


def _plain(value: float) -> str:
    return f"{value:g}"


def _power(value: float) -> str:
    return f"{2**value:g}"


def scatter(
    points: Sequence[tuple[str, float, float]],
    *,
    title: str,
    units: tuple[Format, Format],
    names: tuple[str, str],
    palette: Sequence[str] = (),
    tips: Sequence[str] = (),
    limit: Limit | None = None,
) -> Markup:
    """Draw labelled points and the front of those that no other beats: less of the first, more of the second.

    `tips` says more of each point; without it that is its label. `limit` is a line that the first should not cross.
    """
    height = 220
    across = axis([*(x for _, x, _ in points), *_places(limit)], LEFT, WIDTH - RIGHT - 20, count=3)
    up = axis([y for _, _, y in points], height, 24)
    best = pareto([(x, y) for _, x, y in points if limit is None or x <= limit.value])
    marks = [_side(up, units[1]), _text(LEFT, 12, names[1], "tick")]
    marks += [_text(across(t), height + 16, units[0](t), "tick", anchor="middle") for t in across.ticks]
    marks.append(_text(WIDTH - RIGHT, height + 32, names[0], "tick", anchor="end"))
    marks += [_limit(limit, across, 24, height, units[0])] if limit else []
    marks.append(_tag("polyline", points=_steps(best, across, up), cls="front"))
    coloured = _coloured([*palette, *(label for label, *_ in points)])
    radius = 6 if len(points) <= MANY else 4
    for (label, x, y), tip in zip(points, tips or [label for label, *_ in points], strict=True):
        words = _title(f"{tip}: {units[0](x)}, {units[1](y)}")
        ring = "on-front" if (x, y) in best else ""
        marks.append(_tag("circle", words, cx=across(x), cy=up(y), r=radius, cls=f"fill {coloured[label]} {ring}"))
    shown = [(label, coloured[label]) for label in dict.fromkeys(label for label, *_ in points)]
    legend, bottom = _legend([*shown, *_key(limit)], height + 46)
    return _svg([*marks, *legend], bottom, title)


def _places(limit: Limit | None) -> list[float]:
    return [] if limit is None else [limit.value]


def _key(limit: Limit | None) -> list[tuple[str, str]]:
    return [] if limit is None else [(limit.label, "limit")]


def _limit(limit: Limit, across: Axis, top: float, bottom: float, unit: Format) -> Markup:
    x = across(limit.value)
    return _line(x, top, x, bottom, "limit", _title(f"{limit.label}: {unit(limit.value)}"))


def pareto(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in both: less of the first number, more of the second."""
    front: list[Point] = []
    for x, y in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def bars(rows: Sequence[Bar], *, title: str, unit: Format, limit: Limit | None = None) -> Markup:
    """Draw stacked bars, their sum beside them, a tick where the sum was predicted, and a line at the limit of all."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.parts))
    coloured = _coloured(kinds)
    totals = [sum(row.parts.values()) for row in rows]
    across = axis([*totals, *(row.predicted or 0.0 for row in rows), *_places(limit)], 10, WIDTH - 26, zero=True)
    height, marks = 40, [_grid(across, 10, 10 + 40 * len(rows), unit)]
    for i, (row, total) in enumerate(zip(rows, totals, strict=True)):
        y, at = 10 + height * i + 20, 0.0
        marks.append(_text(10, y - 5, row.label, "label", room=WIDTH - 100, full=True))
        marks.append(_text(WIDTH - 14, y - 5, unit(total), "value", anchor="end"))
        for kind, part in row.parts.items():
            wide = round(across(at + part) - across(at), 2)
            tip = _title(f"{row.label}, {kind}: {unit(part)}")
            marks.append(_tag("rect", tip, x=across(at), y=y, width=wide, height=13, cls=f"fill {coloured[kind]}"))
            at += part
        marks += [_limit(limit, across, y - 2, y + 15, unit)] if limit else []
        if row.predicted is not None:
            tip = _title(f"{row.label}, predicted: {unit(row.predicted)}")
            marks.append(_line(across(row.predicted), y - 2, across(row.predicted), y + 15, "predicted", tip))
    shown = [(kind, coloured[kind]) for kind in kinds]
    shown += [("predicted", "predicted")] if any(row.predicted is not None for row in rows) else []
    shown += _key(limit)
    legend, bottom = _legend(shown, 10 + height * len(rows) + 36)
    return _svg([*marks, *legend], bottom, title)


def waterfall(
    first: tuple[str, float], last: tuple[str, float], steps: Sequence[tuple[str, float]], *, title: str, unit: Format
) -> Markup:
    """Draw the way from one amount to another: a bar of each, and between them what every step adds or takes away."""
    rows: list[tuple[str, float, float, str]] = [(first[0], 0.0, first[1], "c0")]
    at = first[1]
    for name, more in steps:
        rows.append((name, at, at + more, "more" if more > 0 else "less"))
        at += more
    rows.append((last[0], 0.0, last[1], "c0"))
    across = axis([x for _, a, b, _ in rows for x in (a, b)], 10, WIDTH - 26, zero=True)
    height, marks = 40, [_grid(across, 10, 10 + 40 * len(rows), unit)]
    for i, (label, a, b, cls) in enumerate(rows):
        y, whole = 10 + height * i + 20, i in (0, len(rows) - 1)
        said = unit(b) if whole else f"{'+' if b > a else '-'}{unit(abs(b - a))}"
        marks.append(_text(10, y - 5, label, "label", room=WIDTH - 100, full=True))
        marks.append(_text(WIDTH - 14, y - 5, said, "value", anchor="end"))
        wide = round(max(abs(across(b) - across(a)), 0.8), 2)
        tip = _title(f"{label}: {said}")
        marks.append(_tag("rect", tip, x=min(across(a), across(b)), y=y, width=wide, height=13, cls=f"fill {cls}"))
    return _svg(marks, 10 + height * len(rows) + 26, title)


def gantt(spans: Sequence[Span], *, title: str, unit: Format, kinds: Mapping[str, str], width: int = 860) -> Markup:
    """Draw a timeline with one row for each name; `kinds` gives the classes of colours and what they mean."""
    rows = list(dict.fromkeys(span.row for span in spans))
    begin = min(span.start for span in spans)
    across = axis([0.0, max(span.end for span in spans) - begin], 84, width - 30, count=8)
    height, marks = 30, [_grid(across, 8, 8 + 30 * len(rows), unit)]
    marks += [_text(78, 28 + height * i, row, "label", anchor="end", room=72) for i, row in enumerate(rows)]
    for span in spans:
        x, y = across(span.start - begin), 10 + height * rows.index(span.row)
        wide = round(max(across(span.end - begin) - x, 0.8), 2)
        when = f"{unit(span.start - begin)} to {unit(span.end - begin)}"
        tip = _title(f"{span.row}, {kinds[span.kind]} {span.text}{span.note}: {when}")
        cls = f"span kind-{span.kind}{' pale' if span.pale else ''}"
        marks.append(_tag("rect", tip, x=x, y=y, width=wide, height=26, cls=cls))
        if wide > CHARACTER * len(span.text) + 4:
            marks.append(_text(round(x + wide / 2, 2), y + 17, span.text, "in-span", anchor="middle"))
    used = [(name, f"kind-{kind}") for kind, name in kinds.items() if any(span.kind == kind for span in spans)]
    legend, bottom = _legend(used, 8 + height * len(rows) + 38, width=width)
    return _svg([*marks, *legend], bottom, title, width=width)


def _coloured(labels: Sequence[str]) -> dict[str, str]:
    """Give each label a colour, and a dash to those that come after all colours were used once."""
    unique = list(dict.fromkeys(labels))
    return {label: f"c{i % COLOURS}{' dashed' if i >= COLOURS else ''}" for i, label in enumerate(unique)}


def _steps(front: Sequence[Point], across: Axis, up: Axis) -> str:
    corners: list[Point] = []
    for x, y in front:
        corners += [(x, corners[-1][1])] if corners else []
        corners.append((x, y))
    return " ".join(f"{across(x)},{up(y)}" for x, y in corners)


def _grid(across: Axis, top: float, bottom: float, unit: Format) -> Markup:
    marks = [_line(across(t), top, across(t), bottom, "grid") for t in across.ticks]
    last = len(across.ticks) - 1
    anchors = ["start" if i == 0 else "end" if i == last else "middle" for i in range(last + 1)]
    marks += [
        _text(across(t), bottom + 15, unit(t), "tick", anchor=a) for t, a in zip(across.ticks, anchors, strict=True)
    ]
    return Markup("").join(marks)


def _side(up: Axis, unit: Format) -> Markup:
    marks = [_line(LEFT, up(t), WIDTH - RIGHT, up(t), "grid") for t in up.ticks]
    return Markup("").join([*marks, *(_text(LEFT - 6, up(t) + 4, unit(t), "tick", anchor="end") for t in up.ticks)])


def _legend(entries: Sequence[tuple[str, str]], top: float, *, width: int = WIDTH) -> tuple[list[Markup], float]:
    """Return the entries, wrapped into lines, and where the drawing ends."""
    marks, x, y = [], 10.0, top
    for label, cls in entries:
        text = _shortened(label, width - 50)
        wide = 22 + CHARACTER * len(text) + 14
        if x > 10 and x + wide > width:
            x, y = 10.0, y + 20
        marks.append(_tag("line", x1=x, y1=y, x2=x + 16, y2=y, cls=f"key {cls}"))
        marks.append(_text(x + 22, y + 4, text, "label"))
        x += wide
    return marks, y + 14


def _svg(marks: Sequence[Markup], height: float, title: str, *, width: int = WIDTH) -> Markup:
    box = f"0 0 {width} {round(height)}"
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}" class="chart{}">').format(
        box, title, " wide" if width > WIDTH else ""
    )
    return head + Markup("").join(marks) + Markup("</svg>")


def _tag(name: str, *children: Markup, cls: str, **attributes: float | str) -> Markup:
    text = Markup(" ").join(Markup('{}="{}"').format(key, value) for key, value in attributes.items())
    return Markup('<{0} {1} class="{2}">{3}</{0}>').format(name, text, cls.strip(), Markup("").join(children))


def _line(x1: float, y1: float, x2: float, y2: float, cls: str, *children: Markup) -> Markup:
    return _tag("line", *children, cls=cls, x1=x1, y1=y1, x2=x2, y2=y2)


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text)


def _text(
    x: float, y: float, text: str, cls: str, *, anchor: str = "start", room: float = 1e9, full: bool = False
) -> Markup:
    """Write text, shortened to the room it has; `full` keeps the whole of it as a tooltip."""
    shown = _shortened(text, room)
    tip = _title(text) if full and shown != text else Markup("")
    return _tag("text", escape(shown), tip, cls=cls, x=x, y=y, **{"text-anchor": anchor})


def _shortened(text: str, room: float) -> str:
    most = int(room / CHARACTER) if room < 1e9 else len(text)
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"
