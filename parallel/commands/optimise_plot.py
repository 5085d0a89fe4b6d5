"""The picture of `paralab optimise`: suboptimality against epochs, seconds and bytes sent, beside what theory says."""

from collections.abc import Sequence
from typing import Any

from paralab.commands.optimise import Asked
from paralab.commands.optimise_run import Found
from paralab.convex.measured import ROUNDING, Line
from paralab.pages.lines import MOST_POINTS, Series, lines
from paralab.pages.marks import Point
from paralab.pages.page import Chart
from paralab.pages.palette import METHODS, Look
from paralab.pages.raster import drawn
from paralab.pages.tiles import TileRow, tiles

_SHOWN = 8  # images
_ROWS = {"clean": Look("black"), "noisy": Look("grey"), "denoised": Look("orange")}


def draw(asked: Asked, found: Found, *, form: str) -> bytes:
    """Return the picture in a form: "svg", "png" or "pdf". Raises: ConfigError where one needs matplotlib."""
    sends = any(of[-1].sent_bytes for of in found.lines.values())
    panels: list[Chart | None] = [_curves(found, "epochs", "epochs", scale=1)]
    panels.append(_curves(found, "time_s", "seconds", scale=1))
    if sends:
        panels.append(_curves(found, "sent_bytes", "MiB sent by a rank", scale=2**-20))
    if found.shown:
        panels.append(_rows(found.shown))
    return drawn([panels], title=f"paralab optimise --problem {asked.problem}: {found.facts[0]}", form=form)


def _curves(found: Found, column: str, along: str, *, scale: float) -> Chart:
    """Draw each method, and its bound against epochs. Where powers are straight lines, both axes are logarithmic."""
    series = []
    for name, of in found.lines.items():
        kept = _above_rounding(of, found.minima[name])
        places = [(getattr(line, column) * scale, line.suboptimality) for line in kept]
        series.append(_series(name, name, places, powers=bool(found.shown)))
        bounds = [(float(line.epochs), line.bound) for line in of if line.bound is not None]
        if column == "epochs" and bounds:
            series.append(_series(name, f"{name}, bound", bounds, powers=bool(found.shown), dashed=True))
    series = [one for one in series if one.points]
    title = f"Suboptimality by {along}"
    drawing = lines(series, title=title, unit=_power, along=along, decades=True, powers=bool(found.shown))
    return Chart(title, drawing, found.facts[0] if column == "epochs" else "")


def _series(method: str, label: str, points: Sequence[Point], *, powers: bool, dashed: bool = False) -> Series:
    shown = [(x, y) for x, y in points if x > 0 or not powers]  # a logarithmic axis has no zero
    step = -(-len(shown) // MOST_POINTS) or 1
    return Series(label, [*shown[:-1:step], *shown[-1:]], look=Look(METHODS[method].colour, dashed=dashed))


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _above_rounding(of: Sequence[Line], minimum: float) -> list[Line]:
    return [line for line in of if line.suboptimality > ROUNDING * max(1.0, abs(minimum))]


def _rows(shown: Sequence[Any]) -> Chart:
    """Draw clean, noisy and denoised rows: lines of a signal, or strips of images."""
    if shown[0].ndim == 2:
        series = [
            Series(name, list(enumerate(rows[0].tolist())), look=look)
            for rows, (name, look) in zip(shown, _ROWS.items(), strict=True)
        ]
        order = [series[1], series[0], series[2]]  # the noisy one below the others
        title = "A signal, with noise, and denoised"
        return Chart(title, lines(order, title=title, unit=lambda value: f"{value:g}", along="place"))
    title = "Images, with noise, and denoised"
    rows = [
        TileRow(name, [((image + 1) / 2).clip(0, 1) for image in images[:_SHOWN]])
        for images, name in zip(shown, _ROWS, strict=True)
    ]
    return Chart(title, tiles(rows, title=title, largest=1.0), "Pale is -1, dark 1; noise beyond is cut off.")
