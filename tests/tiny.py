"""Every model in its smallest sizes, by a short name: what tests run over all models take."""

from typing import Any

from paralab.layout import Layout
from paralab.models import SPECS

# Options of a run. In fp32 a ReLU whose input is zero but for rounding falls to either side.
TINY: dict[str, dict[str, Any]] = {
    name if size == "tiny" else size.removeprefix("tiny-"): {
        "model": name,
        "size": size,
        **({} if spec.smooth else {"precision": "fp64"}),
    }
    for name, spec in SPECS.items()
    for size in spec.sizes
    if size.startswith("tiny")
}


def divides(layout: Layout, tiny: str) -> bool:
    """Return whether a model, by its short name, says that the axes of a layout can divide it."""
    spec = SPECS[TINY[tiny]["model"]]
    return not any(spec.cannot(spec.config(TINY[tiny]["size"]), axis) for axis in layout.axes)
