"""The picture of `paralab optimise`: suboptimality against epochs, seconds and bytes sent, beside what theory says."""

import io
from collections.abc import Sequence
from typing import Any

from paralab.commands.optimise import Asked
from paralab.commands.optimise_run import Found
from paralab.console.pictures import figure_class
from paralab.convex.measured import ROUNDING, Line

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: all eyes tell them apart
_AXES = (("epochs (dashed: bounds)", "epochs"), ("seconds", "time_s"), ("MiB sent by a rank", "sent_bytes"))


def draw(asked: Asked, found: Found, *, form: str) -> bytes:
    """Return the picture in a form of matplotlib ("png", "svg", "pdf"). Raises: ConfigError without matplotlib."""
    sends = any(lines[-1].sent_bytes for lines in found.lines.values())
    columns = _AXES if sends else _AXES[:2]
    figure = figure_class()(figsize=(4.2 * (len(columns) + bool(found.shown)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(columns) + bool(found.shown))
    for axes, (label, column) in zip(panels, columns, strict=False):
        _curves(axes, found, column, logarithmic=bool(found.shown))
        axes.set(xlabel=label)
    panels[0].set(ylabel="suboptimality")
    panels[0].legend(frameon=False, fontsize="small")
    if found.shown:
        _rows(panels[-1], found.shown)
    figure.suptitle("\n".join((found.facts[0], *found.facts[1:2])), fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def _curves(axes: Any, found: Found, column: str, *, logarithmic: bool) -> None:
    """Draw each method, and its bounds against epochs. logarithmic: in x, where powers are straight lines."""
    for number, (name, lines) in enumerate(found.lines.items()):
        kept = _above_rounding(lines, found.minima[name])
        scale = 2**-20 if column == "sent_bytes" else 1
        x = [getattr(line, column) * scale for line in kept]
        style = {"color": _COLOURS[number], "lw": 1.5}
        axes.plot(x, [line.suboptimality for line in kept], marker="" if len(x) > 60 else ".", label=name, **style)
        if column == "epochs":
            bounded = [(line.epochs, line.bound) for line in lines if line.bound is not None]
            axes.plot(*zip(*bounded, strict=True), "--", lw=1, color=_COLOURS[number]) if bounded else None
    axes.set_yscale("log")
    if logarithmic or column != "epochs":  # methods take very different times, and what starts at 0 is left out
        axes.set_xscale("log")
    axes.grid(alpha=0.3)


def _above_rounding(lines: Sequence[Line], minimum: float) -> list[Line]:
    return [line for line in lines if line.suboptimality > ROUNDING * max(1.0, abs(minimum))]


def _rows(axes: Any, shown: Sequence[Any]) -> None:
    """Draw clean, noisy and denoised rows: lines of a signal, or strips of images."""
    if shown[0].ndim == 2:
        for rows, name, style in zip(shown, ("clean", "noisy", "denoised"), ("k-", ".", "-"), strict=True):
            axes.plot(rows[0], style, lw=1.2, ms=2, label=name, zorder=0 if name == "noisy" else 1)
        axes.legend(frameon=False, fontsize="small")
        return
    import numpy as np

    axes.imshow(np.vstack([np.hstack(list(rows[:4])) for rows in shown]), cmap="gray", vmin=-1, vmax=1)
    axes.set_xticks([])
    size = shown[0].shape[1]
    axes.set_yticks([size * (row + 0.5) for row in range(3)], ["clean", "noisy", "denoised"])
