"""How layers evolve in training: root mean squares of weights, gradients and updates, layer by step, in colours."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.errors import DataError, UsageError
from paralab.pages.heatmap import heatmap
from paralab.pages.page import Chart
from paralab.records.layers import Rms, by_layer
from paralab.records.log import LayerRecord, read_layers

if TYPE_CHECKING:
    from paralab.benchmarks.report.sections import Piece

PANELS: dict[str, Callable[[Rms], float]] = {
    "weights": lambda rms: rms[0],
    "gradients, before clipping": lambda rms: rms[1],
    "updates / weights": lambda rms: rms[2] / rms[0] if rms[0] else 0.0,
}
CAPTION = "Root mean squares over all numbers of a layer, on a logarithmic scale; what is 0 has no colour."
MOST_STEPS = 60  # that are shown


def charts(sources: Sequence[Path]) -> list[Chart | None]:
    """Return the charts of one run's folder. Raises: UsageError; DataError where the log has no such steps."""
    if len(sources) != 1 or not sources[0].is_dir():
        raise UsageError("--layers draws one training run: give the folder of one")
    found = heatmaps(read_layers(sources[0] / "log" / "rank0.jsonl"), name=sources[0].name)
    if not found:
        raise DataError(
            f"{sources[0]} was trained without root mean squares of layers: add --layer-stats-every 10, say"
        )
    return list(found)


def of_pieces(pieces: Sequence["Piece"]) -> list[Chart]:
    """Return the charts of the ways whose logs have root mean squares of layers."""
    found: list[Chart] = []
    for piece in pieces:
        for way in piece.ways:
            records = [record for record in way.logs if isinstance(record, LayerRecord)]
            found += heatmaps(records, name=f"{piece.name}, {way.variant.label}")
    return found


def heatmaps(records: Sequence[LayerRecord], *, name: str) -> list[Chart]:
    """Return a chart for each of `PANELS`, none without records: a row a layer, from the input down, a column a step.

    name: of the run, said in titles. Of many steps some are shown, evenly chosen.
    """
    steps = by_layer(records)
    order = sorted(steps)
    shown = (
        [order[n] for n in sorted({round(n * (len(order) - 1) / (MOST_STEPS - 1)) for n in range(MOST_STEPS)})]
        if order
        else []
    )
    made = []
    for panel, value in PANELS.items() if shown else ():
        layers = list(steps[shown[0]])
        table = [[value(steps[step][layer]) for step in shown] for layer in layers]
        title = f"{name}: {panel}"
        made.append(Chart(title, heatmap(layers, shown, table, title=title, unit=_short, along="step"), CAPTION))
    return made


def _short(value: float) -> str:
    return f"{value:.2g}"
