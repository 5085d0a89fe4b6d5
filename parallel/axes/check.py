"""Check that a model can be divided as a layout says, before anything is built."""

from paralab.axes import all_axes
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.strategies import STRATEGIES, name_of, names_in
from paralab.models.configs import C
from paralab.models.spec import ModelSpec


def check_split(layout: Layout, *, spec: ModelSpec[C], config: C) -> None:
    """Raise LayoutError when the model cannot be split this way: it refuses the strategy, or an axis the model."""
    if refused := sorted(names_in(layout) & spec.refuses.keys()):
        able = ", ".join(s.name for s in STRATEGIES.values() if not names_in(s.layout(s.least)) & spec.refuses.keys())
        name, reason = name_of(layout), spec.refuses[refused[0]]
        raise LayoutError(f"{spec.name} cannot be trained with {name}: {reason}; use one of {able}")
    for axis in reversed(all_axes()):  # innermost first
        if axis.is_used(layout):
            if reason := spec.cannot(config, axis.name):
                raise LayoutError(f"{spec.name} cannot be trained with {name_of(layout)}: {reason}")
            axis.check_model(layout, spec, config)
