"""A timeline: what each row did when, and when it did nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from paralab.pages.marks import CHARACTER, Entry, Format, area, axis, grid, legend, svg, tag, text, title_of
from paralab.pages.palette import UNNAMED, Look

WIDTH = 1080
_START = 152  # of the axis: before it are the names of rows
_PITCH = 26


@dataclass(frozen=True)
class Span:
    """What a row did from one moment to another, in seconds. kind: a key of the looks of its chart."""

    row: str
    kind: str
    text: str
    start: float
    end: float
    note: str = ""


def gantt(spans: Sequence[Span], *, title: str, unit: Format, looks: Mapping[str, tuple[str, Look]]) -> Markup:
    """Draw a timeline with one row for each name, in order of appearance. What no span covers is drawn as idle.

    looks: name and look of each kind of span.
    """
    rows = list(dict.fromkeys(span.row for span in spans))
    begin, end = min(span.start for span in spans), max(span.end for span in spans)
    across = axis([0.0, end - begin], _START, WIDTH - 30, count=8)
    bottom = 8 + _PITCH * len(rows)
    marks = [grid(across, 8, bottom, unit)]
    for i, row in enumerate(rows):
        y = 10 + _PITCH * i
        marks.append(text(_START - 8, y + 15, row, "label", anchor="end", room=_START - 14))
        wide = round(across(end - begin) - across(0.0), 2)
        marks.append(tag("rect", title_of(f"{row}: idle"), x=across(0.0), y=y + 4, width=wide, height=14, cls="idle"))
    for span in spans:
        x, y = across(span.start - begin), 10 + _PITCH * rows.index(span.row)
        wide = round(max(across(span.end - begin) - x, 0.8), 2)
        name, look = looks[span.kind]
        when = f"{unit(span.start - begin)} to {unit(span.end - begin)}"
        tip = title_of(f"{span.row}, {name} {span.text}{span.note}: {when}")
        marks.append(area(x, y, wide, 22, look, tip=tip, cls="span"))
        if wide > CHARACTER * len(span.text) + 4:
            place = round(x + wide / 2, 2)
            marks.append(text(place, y + 15, span.text, f"in-span {look.cls}", anchor="middle"))
    used = [Entry(name, look) for kind, (name, look) in looks.items() if any(span.kind == kind for span in spans)]
    more, height = legend([*used, Entry("idle", UNNAMED, "idle")], bottom + 36, width=WIDTH)
    busy = {row: sum(span.end - span.start for span in spans if span.row == row) for row in rows}
    said = [f"{row}: busy for {unit(busy[row])} of {unit(end - begin)}" for row in rows]
    return svg([*marks, *more], height, title, said, width=WIDTH)
