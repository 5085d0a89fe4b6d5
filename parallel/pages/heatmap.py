"""A table of numbers in colours: a row for each name, a column for each place."""

from collections.abc import Sequence
from math import isfinite, log10

from markupsafe import Markup

from paralab.pages.marks import CHARACTER, WIDTH, Format, svg, tag, text, title_of
from paralab.pages.palette import MAGNITUDES, shade

_HIGH = 15  # units of a row
_BAR = 120  # units of the scale
_STEPS = 24  # colours that the scale shows


def heatmap(
    names: Sequence[str],
    places: Sequence[int],
    numbers: Sequence[Sequence[float]],
    *,
    title: str,
    unit: Format,
    along: str,
) -> Markup:
    """Draw numbers (names, places) in colours by their logarithms, the smallest pale; what is not above 0 has none.

    along: what the places are. Columns are equally wide.
    """
    logs = [log10(number) for row in numbers for number in row if 0 < number and isfinite(number)] or [0.0]
    low, high = min(logs), max(logs)
    left = min(12 + CHARACTER * max(map(len, names)), WIDTH / 2.5)
    wide = (WIDTH - 14 - left) / len(places)
    marks = []
    for row, (name, values) in enumerate(zip(names, numbers, strict=True)):
        y = 8 + row * _HIGH
        marks.append(text(left - 6, y + 11, name, "tick", anchor="end", room=left - 6, full=True))
        for column, number in enumerate(values):
            known = 0 < number and isfinite(number)
            tip = title_of(f"{name}, {along} {places[column]}: {unit(number) if known else number}")
            fill = shade(MAGNITUDES, (log10(number) - low) / ((high - low) or 1.0)) if known else "none"
            x, end = left + column * wide, left + (column + 1) * wide
            marks.append(
                tag("rect", tip, x=round(x, 2), y=y, width=round(end - x, 2), height=_HIGH, fill=fill, cls="cell")
            )
    bottom = 8 + len(names) * _HIGH
    for column in sorted({round(n * (len(places) - 1) / 4) for n in range(5)}):
        marks.append(text(left + (column + 0.5) * wide, bottom + 15, str(places[column]), "tick", anchor="middle"))
    marks += [text(10, bottom + 34, along, "tick"), *_scale(low, high, bottom + 24, unit)]
    shown = {name: [n for n in row if 0 < n and isfinite(n)] for name, row in zip(names, numbers, strict=True)}
    said = [f"{name}: {unit(min(row))} to {unit(max(row))}" for name, row in shown.items() if row]
    return svg(marks, bottom + 42, title, said)


def _scale(low: float, high: float, y: float, unit: Format) -> list[Markup]:
    """Draw which colour is which number, at the right."""
    end = WIDTH - 14 - 0.85 * CHARACTER * len(unit(10**high)) - 6
    start, one = end - _BAR, _BAR / _STEPS
    marks = [
        tag("rect", x=round(start + n * one, 2), y=y, width=round(one, 2), height=12,
            fill=shade(MAGNITUDES, n / (_STEPS - 1)), cls="cell")
        for n in range(_STEPS)
    ]  # fmt: skip
    marks.append(text(start - 6, y + 10, unit(10**low), "tick", anchor="end"))
    return [*marks, text(end + 6, y + 10, unit(10**high), "tick")]
