"""Boxes on floors with arrows between them, as an SVG: a layered drawing (Sugiyama, Tagawa and Toda 1981).

An arrow that passes a floor has a place of its own there, so that none crosses a box. Places are ordered so that few
arrows cross, then moved to where their arrows are straight. All of it depends on the input alone.
"""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 350, 80  # of a box
FLOOR_GAP = 56
LANE = 6  # width of an arrow where it passes a floor
GAP = 26  # between neighbours on a floor
MARGIN = 24
CHARACTERS, LINES = 52, 3  # of a text in a box: as much as fits in fonts as wide as DejaVu Sans
PORTS = 36  # between the ends of arrows at a box, at most
_SWEEPS = 200
_STRAIGHT = 8.0  # times as much as other arrows, those that pass floors should be straight
_CENTRED = 0.4  # and as much boxes should stand in the middle of the picture

STYLE = """
.paper { fill: #ffffff; stroke: #d0d7de; }
.floor { fill: #f6f8fa; }
.box { fill: #ffffff; stroke: #57606a; }
.arrow { fill: none; stroke: #0969da; stroke-width: 1.4; }
.head { fill: #0969da; }
text { font: 11px Helvetica, Arial, "Liberation Sans", sans-serif; fill: #1f2328; }
.name { font-size: 15px; font-weight: bold; }
.corner { fill: #57606a; text-anchor: end; }
"""


@dataclass(frozen=True)
class Box:
    """A box with a name, a sentence, and a word or two in its corner."""

    name: str
    text: str
    corner: str = ""


@dataclass(frozen=True)
class Passing:
    """Where the arrows to a box pass a floor on their way down."""

    target: str


Place = Box | Passing


@dataclass(frozen=True)
class Link:
    """A part of an arrow: from a place on one floor to a place on the next."""

    floor: int
    start: Place
    end: Place


def draw(floors: Sequence[Sequence[Box]], arrows: Iterable[tuple[str, str]], *, title: str) -> str:
    """Return an SVG of boxes on floors, the top one first, and of arrows (name, name), each of which goes down.

    Raises: ValueError for an arrow that does not go down, or a text that does not fit into its box.
    """
    places, links = _with_passings(floors, sorted(arrows))
    _untangle(places, links)
    centres = _centres(places, links)
    width = round(max(x + _width(place) / 2 for (_, place), x in centres.items()) + MARGIN)
    height = 2 * MARGIN + len(floors) * (HEIGHT + FLOOR_GAP) - FLOOR_GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="6"/>',
    ]
    for floor in range(len(places)):
        lines.append(f'<rect class="floor" x="1" y="{_top(floor) - 8}" width="{width - 2}" height="{HEIGHT + 16}"/>')
    lines += _drawn_links(places, links, centres)
    for (floor, place), x in centres.items():
        if isinstance(place, Box):
            lines += _drawn_box(place, x - WIDTH / 2, _top(floor))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _with_passings(
    floors: Sequence[Sequence[Box]], arrows: Sequence[tuple[str, str]]
) -> tuple[list[list[Place]], list[Link]]:
    """Return the places on each floor, and all arrows in parts from floor to floor; those to one box share parts."""
    where = {box.name: (number, box) for number, floor in enumerate(floors) for box in floor}
    places: list[list[Place]] = [list(floor) for floor in floors]
    links: dict[Link, None] = {}
    for above, below in arrows:
        (first, start), (last, end) = where[above], where[below]
        if first >= last:
            raise ValueError(f"the arrow from {above} on floor {first} to {below} on floor {last} does not go down")
        way: list[Place] = [start, *[Passing(below)] * (last - first - 1), end]
        for floor, (here, there) in enumerate(itertools.pairwise(way), first):
            if here not in places[floor]:
                places[floor].append(here)
            links[Link(floor, here, there)] = None
    return places, list(links)


# --- the order on each floor


def _untangle(places: list[list[Place]], links: Sequence[Link]) -> None:
    """Swap neighbours, in place, while fewer arrows cross for it, or as many and they are shorter."""
    best, improved = _tangle(places, links), True
    while improved:
        improved = False
        for floor in places:
            for a, b in itertools.combinations(range(len(floor)), 2):
                floor[a], floor[b] = floor[b], floor[a]
                if (now := _tangle(places, links)) < best:
                    best, improved = now, True
                else:
                    floor[a], floor[b] = floor[b], floor[a]


def _tangle(places: Sequence[Sequence[Place]], links: Sequence[Link]) -> tuple[int, float]:
    """Return how many pairs of arrows cross, and how far to the side they go."""
    at = [{place: i - (len(floor) - 1) / 2 for i, place in enumerate(floor)} for floor in places]
    ends = [(link.floor, at[link.floor][link.start], at[link.floor + 1][link.end]) for link in links]
    crossings = sum(
        floor == other and (start - other_start) * (end - other_end) < 0
        for (floor, start, end), (other, other_start, other_end) in itertools.combinations(ends, 2)
    )
    return crossings, sum(abs(start - end) for _, start, end in ends)


# --- where they stand


def _width(place: Place) -> float:
    return WIDTH if isinstance(place, Box) else LANE


def _top(floor: int) -> int:
    return MARGIN + floor * (HEIGHT + FLOOR_GAP)


def _centres(places: Sequence[Sequence[Place]], links: Sequence[Link]) -> dict[tuple[int, Place], float]:
    """Return x of the middle of every place, such that arrows are as straight as the order allows."""
    near: dict[tuple[int, Place], list[tuple[tuple[int, Place], float]]] = {}
    for link in links:
        weight = 1.0 + (_STRAIGHT - 1) * (isinstance(link.start, Passing) or isinstance(link.end, Passing))
        start, end = (link.floor, link.start), (link.floor + 1, link.end)
        near.setdefault(start, []).append((end, weight))
        near.setdefault(end, []).append((start, weight))
    x = {(floor, place): 0.0 for floor, row in enumerate(places) for place in row}
    numbers = range(len(places))
    for floor in itertools.chain(*[[*numbers, *reversed(numbers)]] * _SWEEPS):
        row = [(floor, place) for place in places[floor]]
        wanted = [_mean([(x[other], weight) for other, weight in near.get(key, ())], key[1]) for key in row]
        x |= dict(zip(row, _apart(wanted, [_width(place) for place in places[floor]]), strict=True))
    left = min(centre - _width(place) / 2 for (_, place), centre in x.items())
    return {key: round(centre - left + MARGIN, 1) for key, centre in x.items()}


def _mean(pulls: Sequence[tuple[float, float]], place: Place) -> float:
    """Return the mean of (x, weight), to which a box adds the middle of the picture, x = 0."""
    weight = sum(weight for _, weight in pulls) + (_CENTRED if isinstance(place, Box) else 0)
    return sum(x * weight for x, weight in pulls) / weight


def _apart(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Return the places nearest to the wanted ones, by least squares, that keep their order and do not touch.

    It is an isotonic regression, by pooling neighbours that are in each other's way (Ayer et al. 1955).
    """
    offsets = [0.0]
    for left, right in itertools.pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + GAP)
    pools: list[tuple[float, int]] = []
    for value in (x - offset for x, offset in zip(wanted, offsets, strict=True)):
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    pooled = [value for value, n in pools for _ in range(n)]
    return [value + offset for value, offset in zip(pooled, offsets, strict=True)]


# --- as SVG


def _drawn_links(
    places: Sequence[Sequence[Place]], links: Sequence[Link], centres: dict[tuple[int, Place], float]
) -> Iterator[str]:
    leaving = _ports(links, centres, down=True)
    coming = _ports(links, centres, down=False)
    for link in links:
        x, y = leaving[link], _top(link.floor) + HEIGHT
        to_x, to_y = coming[link], _top(link.floor + 1) - (7 if isinstance(link.end, Box) else 0)
        half = FLOOR_GAP / 2
        yield f'<path class="arrow" d="M{x:g} {y:g} C{x:g} {y + half:g} {to_x:g} {to_y - half:g} {to_x:g} {to_y:g}"/>'
        if isinstance(link.end, Box):
            yield f'<path class="head" d="M{to_x - 4:g} {to_y:g} h8 l-4 7 z"/>'
    for floor, row in enumerate(places):
        for place in row:
            if isinstance(place, Passing):
                yield f'<path class="arrow" d="M{centres[floor, place]:g} {_top(floor):g} v{HEIGHT}"/>'


def _ports(links: Sequence[Link], centres: dict[tuple[int, Place], float], *, down: bool) -> dict[Link, float]:
    """Return x of one end of every link: side by side along a box, in the order of the other ends."""
    groups: dict[tuple[int, Place], list[Link]] = {}
    for link in links:
        groups.setdefault((link.floor, link.start) if down else (link.floor + 1, link.end), []).append(link)
    found = {}
    for (floor, place), group in groups.items():
        group.sort(key=lambda link: centres[(link.floor + 1, link.end) if down else (link.floor, link.start)])
        step = min(PORTS, (WIDTH - PORTS) / len(group)) if isinstance(place, Box) else 0
        for i, link in enumerate(group):
            found[link] = centres[floor, place] + (i - (len(group) - 1) / 2) * step
    return found


def _drawn_box(box: Box, x: float, y: float) -> Iterator[str]:
    lines = textwrap.wrap(box.text, CHARACTERS)
    if len(lines) > LINES:
        raise ValueError(f"the text of {box.name} takes {len(lines)} lines of {CHARACTERS} characters: {LINES} fit")
    yield f'<rect class="box" x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
    yield f'<text class="name" x="{x + 12:g}" y="{y + 23:g}">{escape(box.name)}</text>'
    yield f'<text class="corner" x="{x + WIDTH - 12:g}" y="{y + 23:g}">{escape(box.corner)}</text>'
    for i, line in enumerate(lines):
        yield f'<text x="{x + 12:g}" y="{y + 42 + 14 * i:g}">{escape(line)}</text>'
