"""Root mean squares of parameters, put together layer by layer."""

import math
import re
from collections.abc import Sequence

from paralab.records.log import LayerRecord

Rms = tuple[float, float, float]  # of a group of parameters in one step: those of `RMS`
RMS = ("weight_rms", "gradient_rms", "update_rms")


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its numbered block (blocks.3), else the module that holds it (embed.tokens)."""
    block = re.match(r".*?\.\d+(?=\.)", name)
    return block[0] if block else name.rpartition(".")[0] or name


def by_layer(records: Sequence[LayerRecord]) -> dict[int, dict[str, Rms]]:
    """Return by step and layer the root mean squares over all numbers of its parameters."""
    sums: dict[int, dict[str, list[float]]] = {}
    for record in records:
        total = sums.setdefault(record.step, {}).setdefault(layer_of(record.name), [0.0, 0.0, 0.0, 0.0])
        for place, kind in enumerate(RMS):
            total[place] += record.numel * getattr(record, kind) ** 2
        total[3] += record.numel
    return {
        step: {name: (math.sqrt(w / n), math.sqrt(g / n), math.sqrt(u / n)) for name, (w, g, u, n) in layers.items()}
        for step, layers in sums.items()
    }
