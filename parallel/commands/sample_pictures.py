"""The pictures of `paralab sample`: samples and how they came from noise, and originals beside what was denoised."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paralab.pages.page import Chart
from paralab.pages.palette import Look
from paralab.pages.raster import drawn
from paralab.pages.tiles import TileRow, cloud, tiles

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from paralab.inference.denoise import Denoised

SHOWN_POINTS = 300  # of each cloud
_PATHS, _TILES = 40, 12
_REACH = 3.0  # standard deviations of the training points
_UNIT = "In standard deviations of the training points."
_ORIGINALS, _FOUND, _NOISY = Look("grey"), Look("blue"), Look("orange")
Rows = list[list[Chart | None]]


def of_samples(path: "Tensor", form: str) -> bytes:
    """Draw samples, and their paths (levels, n, ...) from noise."""
    charts = _points(path) if path.dim() == 3 else _images(path)
    return drawn([charts], title="paralab sample", form=form)


def _points(path: "Tensor") -> list[Chart | None]:
    n, shown = path.shape[1], min(_PATHS, path.shape[1])
    title, ways = f"{min(n, 5 * SHOWN_POINTS):,} samples", f"How {shown} of them came from noise"
    samples = _pairs(path[-1, : 5 * SHOWN_POINTS])
    came = [_pairs(path[:, i]) for i in range(shown)]
    return [
        Chart(title, cloud({"samples": (_FOUND, samples)}, title=title, reach=_REACH), _UNIT),
        Chart(
            ways, cloud({"samples": (_FOUND, samples[:shown])}, title=ways, reach=_REACH, paths=came, radius=3), _UNIT
        ),
    ]


def _images(path: "Tensor") -> list[Chart | None]:
    moments = [round(n * (len(path) - 1) / 6) for n in range(7)]
    rows = [TileRow(f"after {m}" if m else "noise", _shades(path[m, :_TILES])) for m in moments]
    caption = "Rows are noise levels passed; the last one is the samples. Pale is -1, dark 1."
    return [Chart("From noise to images", tiles(rows, title="From noise to images", largest=1.0), caption)]


def of_denoised(clean: "Tensor", found: Sequence["Denoised"], *, steps: int, form: str) -> bytes:
    """Draw originals (n, ...) beside them with noise and denoised, a row for each level."""
    rows = _clouds(clean, found, steps) if clean.dim() == 2 else _tiles(clean, found, steps)
    return drawn(rows, title="paralab sample --denoise", form=form)


def _clouds(clean: "Tensor", found: Sequence["Denoised"], steps: int) -> Rows:
    originals, reach = _pairs(clean[:SHOWN_POINTS]), 1.3 * float(clean.abs().max())

    def chart(title: str, name: str, look: Look, points: "Tensor") -> Chart:
        clouds = {"originals": (_ORIGINALS, originals), name: (look, _pairs(points[:SHOWN_POINTS]))}
        return Chart(title, cloud(clouds, title=title, reach=reach), _UNIT)

    return [
        [
            chart(f"Noise of {one.sigma:g}", "with noise", _NOISY, one.noisy),
            chart("Denoised in one evaluation", "mean of the originals", _FOUND, one.mean),
            chart(f"Denoised in {steps} steps", "one original", _FOUND, one.sampled),
        ]
        for one in found
    ]


def _tiles(clean: "Tensor", found: Sequence["Denoised"], steps: int) -> Rows:
    rows = [TileRow("originals", _shades(clean[:_TILES]))]
    for one in found:
        for name, images in (("noise", one.noisy), ("1 step", one.mean), (f"{steps} steps", one.sampled)):
            rows.append(TileRow(f"{one.sigma:g}: {name}", _shades(images[:_TILES])))
    title = "Originals, with noise, and denoised"
    return [[Chart(title, tiles(rows, title=title, largest=1.0), "Pale is -1, dark 1.")]]


def _pairs(points: "Tensor") -> list[tuple[float, float]]:
    return [(x, y) for x, y in points.tolist()]


def _shades(images: "Tensor") -> "list[np.ndarray]":
    """Return the mean over the channels of images (n, channels, size, size), from 0 to 1 in place of -1 to 1."""
    return list(((images.mean(1) + 1) / 2).clamp(0, 1).numpy())
