"""Check that a model can be divided as a layout says, before anything is built."""

from typing import Any

from models.spec import ModelSpec
from parallel.errors import LayoutError
from parallel.layout import SCHEDULES, Layout
from parallel.layout.strategies import STRATEGIES, name_of, names_in


def check_split(layout: Layout, *, spec: ModelSpec, config: Any) -> None:
    """Raise LayoutError when the model cannot be split this way."""
    if refused := sorted(names_in(layout) & spec.refuses.keys()):
        able = ", ".join(s.name for s in STRATEGIES.values() if not names_in(s.layout(s.least)) & spec.refuses.keys())
        name, reason = name_of(layout), spec.refuses[refused[0]]
        raise LayoutError(f"{spec.name} cannot be trained with {name}: {reason}; use one of {able}")
    for quantity, n in spec.tensor_divides(config).items():
        if n % layout.tp:
            fits = ", ".join(str(tp) for tp in range(1, n + 1) if _divides(tp, spec, config))
            raise LayoutError(f"tp={layout.tp} does not divide {quantity}={n} of {spec.name}: use a tp of {fits}")
    if layout.sequence_parallel and not spec.sequence_parallel:
        raise LayoutError(f"{spec.name} has no sequence-parallel form: leave sp out of the layout")
    if layout.sequence_parallel and (lacking := spec.sequence_problems(config)):
        raise LayoutError(f"{spec.name}: {'; '.join(lacking)}; leave sp out of the layout, or see docs/models.md")
    if layout.sequence_parallel and config.seq_len % layout.tp:
        raise LayoutError(f"tp={layout.tp} with sp does not divide seq_len={config.seq_len}: use another tp, or no sp")
    blocks = spec.n_blocks(config)
    if layout.schedule is not None and layout.stages > blocks:
        most = blocks // SCHEDULES[layout.schedule].stages_per_rank
        raise LayoutError(
            f"{layout.stages} pipeline stages for the {blocks} blocks of {spec.name}: use pp{most} or less "
            f"with {layout.schedule}, or a larger --size"
        )


def _divides(tp: int, spec: ModelSpec, config: Any) -> bool:
    return all(n % tp == 0 for n in spec.tensor_divides(config).values())
