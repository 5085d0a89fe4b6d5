"""The strategies, by name, and the checks that a layout passes before anything is built."""

from typing import Any

from models.spec import ModelSpec
from parallel.errors import ConfigError, LayoutError, did_you_mean
from parallel.layout import SCHEDULES, Layout
from parallel.spec import BuildContext, Engine, Strategy
from parallel.strategies import ddp, hybrid, pipeline, single, tensor, zero

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for module in (single, ddp, pipeline, zero, tensor, hybrid)
    for strategy in module.STRATEGIES
}


def find(name: str) -> Strategy:
    """Return a strategy. Raises: ConfigError for an unknown name."""
    if name not in STRATEGIES:
        hint = did_you_mean(name, STRATEGIES)
        raise ConfigError(f"strategy {name!r} is unknown{hint}: use one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def layout_of(name: str, nproc: int) -> Layout:
    """Return a strategy's layout for so many processes. Raises: ConfigError; LayoutError where it has none."""
    strategy = find(name)
    if nproc == 1 and not runs_alone(name):
        raise LayoutError(f"{name} needs 2 processes or more, 1 asked for: use --nproc 2 or more, or --strategy single")
    return strategy.layout(nproc)


def runs_alone(name: str) -> bool:
    """Return whether a strategy may run over one process: those of the data axis, with nothing to divide."""
    return set(find(name).axes) <= {"dp"}


def stands_for(name: str, layout: Layout) -> bool:
    """Return whether a layout is a strategy's: by name, or as what `layout_of` gives for as many processes."""
    if name == name_of(layout):
        return True
    return layout.world_size == 1 and runs_alone(name) and layout_of(name, 1) == layout


def name_of(layout: Layout) -> str:
    """Return the strategy that a layout belongs to; of those that share it, the plainest."""
    if len(layout.axes) > 1:
        return "3d" if len(layout.axes) == 3 else "2d"
    if layout.pp > 1:
        return "model" if layout.schedule == "naive" else "pipeline"
    if layout.zero:
        return f"zero{layout.zero}"
    if layout.dp > 1:
        return "ddp"
    return "tensor" if layout.tp > 1 else "single"


def build(context: BuildContext) -> Engine:
    """Build the engine of a layout on this rank."""
    return (STRATEGIES[name_of(context.layout)].build or hybrid.build)(context)


def check(layout: Layout, *, spec: ModelSpec, config: Any) -> None:
    """Raise LayoutError when the model cannot be split this way."""
    name = name_of(layout)
    if name in spec.refuses:
        able = ", ".join(other for other in STRATEGIES if other not in spec.refuses)
        raise LayoutError(f"{spec.name} cannot be trained with {name}: {spec.refuses[name]}; use one of {able}")
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
    if layout.stages > blocks:
        most = blocks // SCHEDULES[layout.schedule].stages_per_rank
        raise LayoutError(
            f"{layout.stages} pipeline stages for the {blocks} blocks of {spec.name}: use pp{most} or less "
            f"with {layout.schedule}, or a larger --size"
        )


def _divides(tp: int, spec: ModelSpec, config: Any) -> bool:
    return all(n % tp == 0 for n in spec.tensor_divides(config).values())
