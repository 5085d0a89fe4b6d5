"""First-layer filters and feature maps of a ResNet across training, from the checkpoints of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.benchmarks.report.choices import CHECKPOINTS
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.errors import UsageError
from paralab.pages.page import Chart
from paralab.pages.tiles import TileRow, tiles

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from paralab.inference.feature_maps import Looked

CHANNELS = 16  # that are shown


def charts(sources: Sequence[Path], *, number: int = 0) -> list[list[Chart | None]]:
    """Return rows of charts of one run: filters and the image, then feature maps by depth.

    number: of the held-out image that the maps are of.

    Raises: UsageError; and as `across_training`.
    """
    if len(sources) != 1 or not sources[0].is_dir():
        raise UsageError("--filters draws one training run: give the folder of one")
    from paralab.inference.feature_maps import across_training

    with Phases(Moment.now(), transient=True) as phases:
        looked, image = across_training(sources[0], most=CHECKPOINTS, number=number, phases=phases)
    label = f"image {number}"
    made: list[Chart | None] = [_filters(looked), *(_maps(looked, name, image, label) for name in looked[0].maps)]
    return [made[n : n + 2] for n in range(0, len(made), 2)]


def _filters(looked: Sequence["Looked"]) -> Chart:
    first, count = looked[0], len(looked[0].filters)
    rows = [TileRow(one.label, [_pixels(one_filter) for one_filter in one.filters[:CHANNELS]]) for one in looked]
    height, width = first.filters.shape[2:]
    moved = [float((one.filters - first.filters).norm() / first.filters.norm()) for one in looked[1:]]
    caption = (
        f"{_of(count, 'filters')}, {height} x {width} weights: orange above 0, blue below; each row has its scale."
    )
    if moved:
        caption += f" From the first row they moved by {', '.join(f'{share:.0%}' for share in moved)} of their norm."
    return Chart("Filters of the first layer", tiles(rows, title="Filters of the first layer", signed=True), caption)


def _maps(looked: Sequence["Looked"], name: str, image: "Tensor", label: str) -> Chart:
    first = looked[0].maps[name]
    rows = [TileRow(one.label, [channel.numpy() for channel in one.maps[name][:CHANNELS]]) for one in looked]
    if name == next(iter(looked[0].maps)):  # above them, what they are maps of
        rows.insert(0, TileRow(label, [_pixels((image + 1) / 2)]))
    height, width = first.shape[1:]
    caption = f"{_of(len(first), 'maps')}, {height} x {width} numbers: pale 0, dark the largest number of the row."
    return Chart(f"After {name}", tiles(rows, title=f"Feature maps after {name}"), caption)


def _of(count: int, what: str) -> str:
    return f"All {count} {what}" if count <= CHANNELS else f"The first {CHANNELS} of {count} {what}"


def _pixels(numbers: "Tensor") -> "np.ndarray":
    """Return (height, width) of one channel, or (height, width, 3) of three; of any other number their mean."""
    if len(numbers) == 3:
        return numbers.permute(1, 2, 0).numpy()
    return numbers.mean(0).numpy()
