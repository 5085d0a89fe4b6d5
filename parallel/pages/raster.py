"""A picture of `picture.py` as PNG or PDF, drawn by matplotlib: it has few kinds of elements, and `style.py` has their
properties.
"""

import io
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any
from xml.etree import ElementTree

from paralab.errors import ConfigError
from paralab.pages import style
from paralab.pages.page import Chart
from paralab.pages.picture import picture

_PIXELS = 96  # of an inch, in CSS
_POINT = 72 / _PIXELS  # in a pixel
SHARP = 1.5  # pixels of a PNG for one of the drawing
_SVG = "{http://www.w3.org/2000/svg}"
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def drawn(rows: Sequence[Sequence[Chart | None]], *, title: str, form: str) -> bytes:
    """Return the file of charts in rows. form: "svg", "png" or "pdf". Raises: ConfigError, as `converted`."""
    found = picture(rows, title=title)
    return found.encode() if form == "svg" else converted(found, form)


def converted(picture: str, form: str) -> bytes:
    """Return an SVG of `picture.py` in another form: "png" or "pdf". Raises: ConfigError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            f".{form} needs matplotlib: pip install 'paralab[plot]', or use a name ending in .svg"
        ) from error
    root = ElementTree.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    figure = Figure(figsize=(width / _PIXELS, height / _PIXELS), dpi=SHARP * _PIXELS)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    _draw(axes, root, 0.0, 0.0, count())
    content = io.BytesIO()
    figure.savefig(content, format=form, metadata={"CreationDate": None} if form == "pdf" else None)
    return content.getvalue()


def _draw(axes: Any, element: ElementTree.Element, x: float, y: float, order: Iterator[int]) -> None:
    """Draw what is inside an element. x, y: where its own coordinates begin. order: of drawing, counted over all."""
    for child in element:
        tag = child.tag.removeprefix(_SVG)
        if tag == "svg":
            _draw(axes, child, x + float(child.attrib["x"]), y + float(child.attrib["y"]), order)
        elif tag in _DRAWN:
            found = style.of(tag, child.attrib.get("class", "").split())
            _DRAWN[tag](axes, child, x, y, found | {"z": str(next(order))})


def _number(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name])


def _points(element: ElementTree.Element, x: float, y: float) -> list[tuple[float, float]]:
    pairs = [place.split(",") for place in element.attrib["points"].split()]
    return [(x + float(a), y + float(b)) for a, b in pairs]


def _stroke(found: Mapping[str, str]) -> dict[str, Any]:
    """Return colour, width, dashes and opacity of a line as matplotlib has them."""
    if found.get("stroke", "none") == "none":
        return {"linewidth": 0}
    width = float(found.get("stroke-width", 1)) * _POINT
    dashes = [float(d) * _POINT / width for d in found.get("stroke-dasharray", "").split()]  # in widths of the line
    return {"linewidth": width, "linestyle": (0, dashes) if dashes else "-"}


def _colour(found: Mapping[str, str], name: str) -> tuple[str, float] | str:
    colour = found.get(name, "none" if name == "stroke" else "#000000")
    return colour if colour == "none" else (colour, float(found.get(f"{name}-opacity", 1)))


def _patch(axes: Any, patch: Any, found: Mapping[str, str]) -> None:
    patch.set(facecolor=_colour(found, "fill"), edgecolor=_colour(found, "stroke"), zorder=float(found["z"]))
    patch.set(**_stroke(found), antialiased=found.get("shape-rendering") != "crispEdges")
    axes.add_patch(patch)


def _rect(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    from matplotlib.patches import Rectangle

    corner = x + _number(element, "x"), y + _number(element, "y")
    if "fill" in element.attrib:
        found = {**found, "fill": element.attrib["fill"]}
    _patch(axes, Rectangle(corner, _number(element, "width"), _number(element, "height")), found)


def _image(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    import numpy as np
    from matplotlib.image import AxesImage
    from PIL import Image

    left, top = x + _number(element, "x"), y + _number(element, "y")
    edges = (left, left + _number(element, "width"), top + _number(element, "height"), top)
    drawn = AxesImage(axes, extent=edges, origin="upper", interpolation="nearest", zorder=float(found["z"]))
    content = b64decode(element.attrib["href"].partition(",")[2])
    drawn.set_data(np.asarray(Image.open(io.BytesIO(content))))
    axes.add_image(drawn)


def _circle(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    from matplotlib.patches import Circle

    _patch(axes, Circle((x + _number(element, "cx"), y + _number(element, "cy")), _number(element, "r")), found)


def _polygon(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    from matplotlib.patches import Polygon

    _patch(axes, Polygon(_points(element, x, y)), found)


def _polyline(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    _line_through(axes, _points(element, x, y), found)


def _line(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    ends = [(x + _number(element, f"x{n}"), y + _number(element, f"y{n}")) for n in (1, 2)]
    _line_through(axes, ends, found)


def _path(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    for a, b, c, d in re.findall(r"M(\S+) (\S+?)L(\S+) (\S+)", element.attrib["d"]):
        _line_through(axes, [(x + float(a), y + float(b)), (x + float(c), y + float(d))], found)


def _line_through(axes: Any, points: list[tuple[float, float]], found: Mapping[str, str]) -> None:
    if points:
        alpha = float(found.get("stroke-opacity", 1))
        colour = {"color": found["stroke"], "alpha": alpha, "zorder": float(found["z"])}
        axes.plot(*zip(*points, strict=True), solid_capstyle="butt", **colour, **_stroke(found))


def _text(axes: Any, element: ElementTree.Element, x: float, y: float, found: Mapping[str, str]) -> None:
    from matplotlib.patheffects import withStroke

    effects = []
    if found.get("stroke", "none") != "none":  # around the letters, so that they can be read on what lies below
        effects = [withStroke(linewidth=float(found["stroke-width"]) * _POINT, foreground=found["stroke"])]
    axes.text(
        x + _number(element, "x"),
        y + _number(element, "y"),
        (element.text or "").replace("$", r"\$"),
        fontsize=float(found["font-size"].removesuffix("px")) * _POINT * 0.94,  # its sans-serif is wide
        fontweight="bold" if found.get("font-weight") == "600" else "normal",
        color=found["fill"],
        ha=_ANCHORS[element.attrib.get("text-anchor", "start")],
        va="baseline",
        path_effects=effects,
        zorder=float(found["z"]),
    )


_DRAWN = {
    "rect": _rect,
    "image": _image,
    "circle": _circle,
    "polygon": _polygon,
    "polyline": _polyline,
    "line": _line,
    "path": _path,
    "text": _text,
}
