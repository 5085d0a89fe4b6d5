"""How layers evolve in training: root mean squares of weights, gradients and updates, layer by step, in colours."""

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from paralab.errors import ConfigError, DataError, UsageError
from paralab.records.log import LayerRecord, read_layers

# of a group of parameters in one step: weights, gradients and updates
Rms = tuple[float, float, float]
PANELS: dict[str, Callable[[Rms], float]] = {
    "weights": lambda rms: rms[0],
    "gradients, before clipping": lambda rms: rms[1],
    "updates / weights": lambda rms: rms[2] / rms[0] if rms[0] else 0.0,
}


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its numbered block (blocks.3), else the module that holds it (embed.tokens)."""
    block = re.match(r".*?\.\d+(?=\.)", name)
    return block[0] if block else name.rpartition(".")[0] or name


def by_layer(records: Sequence[LayerRecord]) -> dict[int, dict[str, Rms]]:
    """Return by step and layer the root mean squares over all numbers of its parameters."""
    sums: dict[int, dict[str, list[float]]] = {}
    for record in records:
        total = sums.setdefault(record.step, {}).setdefault(layer_of(record.name), [0.0, 0.0, 0.0, 0.0])
        for place, rms in enumerate((record.weight_rms, record.gradient_rms, record.update_rms)):
            total[place] += record.numel * rms**2
        total[3] += record.numel
    return {
        step: {name: (math.sqrt(w / n), math.sqrt(g / n), math.sqrt(u / n)) for name, (w, g, u, n) in layers.items()}
        for step, layers in sums.items()
    }


def picture(sources: Sequence[Path], form: str) -> bytes:
    """Return the file of a picture of one run. form: svg, png or pdf. Raises: UsageError; and as `heatmaps`."""
    if len(sources) != 1 or not sources[0].is_dir():
        raise UsageError("--layers draws one training run: give the folder of one")
    buffer = io.BytesIO()
    heatmaps(sources[0]).savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def heatmaps(folder: Path) -> Any:
    """Return a figure: a row a layer, from the input at the top to the output, and a column a step, for each panel.

    Colours are logarithms; what is 0, such as a bias before its first update, has none.
    Raises: DataError where the log has no such steps; ConfigError without matplotlib.
    """
    steps = by_layer(read_layers(folder / "log" / "rank0.jsonl"))
    if not steps:
        raise DataError(f"{folder} was trained without root mean squares of layers: add --layer-stats-every 10, say")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'paralab[plot]'") from error
    order, layers = sorted(steps), list(next(iter(steps.values())))
    figure = Figure(figsize=(4.4 * len(PANELS), max(2.4, 0.8 + 0.2 * len(layers))), layout="constrained")
    figure.suptitle(f"{folder.name}: root mean square, layer by step")
    for number, (title, value) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(1, len(PANELS), number)
        table = [[_log(value(steps[step][layer])) for step in order] for layer in layers]
        image = axes.imshow(table, aspect="auto", cmap="cividis", interpolation="nearest")
        axes.set(title=title, xlabel="step")
        axes.set_facecolor("#dddddd")
        shown = sorted({round(i * (len(order) - 1) / 4) for i in range(5)})
        axes.set_xticks(shown, [str(order[i]) for i in shown])
        axes.set_yticks(range(len(layers)), layers if number == 1 else [""] * len(layers), fontsize="small")
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        bar.ax.yaxis.set_major_formatter(lambda exponent, _: f"{10**exponent:.2g}")
    return figure


def _log(value: float) -> float:
    return math.log10(value) if 0 < value < math.inf else math.nan
