"""Charts as one picture that stands alone: SVG with its colours inside, or what `raster.py` makes of it."""

import textwrap
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup

from paralab.pages.marks import WIDTH, text
from paralab.pages.page import Chart
from paralab.pages.palette import LIGHT
from paralab.pages.style import on_paper

_GAP, _TITLE, _LINE = 24, 24, 16  # units around a chart, of its title and of a line of its caption
_LINE_CHARACTERS = 62  # of a caption


def picture(rows: Sequence[Sequence[Chart | None]], *, title: str) -> str:
    """Return an SVG of charts in rows; None leaves a place empty. title: said to those who do not see it."""
    marks: list[Markup] = []
    top, columns = float(_GAP), max(len(row) for row in rows)
    for row in rows:
        placed = [_placed(chart, _GAP + column * (WIDTH + _GAP), top) for column, chart in enumerate(row) if chart]
        marks += [drawn for drawn, _ in placed]
        top += max((height for _, height in placed), default=0.0) + _GAP
    width, height = _GAP + columns * (WIDTH + _GAP), round(top)
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img">')
    return str(
        head.format(width, height)
        + Markup("<title>{}</title>\n<style>{}</style>\n").format(title, Markup(on_paper()))
        + Markup('<rect x="0" y="0" width="{}" height="{}" fill="{}" class="paper"/>\n').format(
            width, height, LIGHT["--paper"]
        )
        + Markup("\n").join(marks)
        + Markup("\n</svg>\n")
    )


def _placed(chart: Chart, x: float, y: float) -> tuple[Markup, float]:
    """Return a chart with its title above and its caption below, and how high all of it is."""
    drawing = ElementTree.fromstring(str(chart.drawing))
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    place = Markup('<svg x="{}" y="{}" width="{}" height="{}" ').format(x, y + _TITLE, width, height)
    marks = [text(x + 10, y + 14, chart.title, "title", room=WIDTH), Markup(chart.drawing.replace("<svg ", place, 1))]
    lines = textwrap.wrap(chart.caption, _LINE_CHARACTERS)
    marks += [text(x + 10, y + _TITLE + height + _LINE * (n + 1), words, "tick") for n, words in enumerate(lines)]
    return Markup("").join(marks), _TITLE + height + _LINE * len(lines)
