"""The strategies: named layouts, in one list. Options, help, tables, tests and the tour all read this one.

What an axis does to modules, optimizer and gradients stands in `paralab.axes`; a strategy only says which
layout a name stands for, when to use it and what it costs. This module imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass

from paralab.errors import ConfigError, LayoutError, did_you_mean
from paralab.layout import Layout, words


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A named way to split training.

    layout: the layout it stands for on so many processes; raises LayoutError where there is none. axes: those that
    its layout divides. least: the fewest processes it runs on. when, costs: one line each, for users.
    """

    name: str
    axes: tuple[str, ...]
    least: int
    when: str
    costs: str
    layout: Callable[[int], Layout]
    aliases: tuple[str, ...] = ()


def _pipeline(pp: int, *, dp: int = 1, tp: int = 1) -> Layout:
    """Return a 1F1B layout with two micro-batches a stage: a bubble of (pp - 1) / (3 pp - 1)."""
    return Layout(dp=dp, tp=tp, pp=pp, schedule="1f1b", micro_batches=2 * pp) if pp > 1 else Layout(dp=dp, tp=tp)


def _two_axes(nproc: int) -> Layout:
    _need(nproc % 2 == 0 and nproc >= 4, "2d", "tensor 2 x pipeline: 4, 6, 8 ... processes", nproc)
    return _pipeline(nproc // 2, tp=2)


def _three_axes(nproc: int) -> Layout:
    _need(nproc % 4 == 0 and nproc >= 8, "3d", "data x tensor 2 x pipeline 2: 8, 12, 16 ... processes", nproc)
    return _pipeline(2, tp=2, dp=nproc // 4)


def _two_groups(nproc: int) -> Layout:
    _need(nproc % 2 == 0 and nproc >= 4, "hsdp", "two groups of data ranks: 4, 6, 8 ... processes", nproc)
    return Layout(dp=nproc, zero=3, shard=nproc // 2)


def _divided_experts(nproc: int) -> Layout:
    _need(nproc % 2 == 0, "expert", "pairs of data ranks that divide experts: 2, 4, 6 ... processes", nproc)
    return Layout(dp=nproc, ep=2)


def _need(met: bool, name: str, needs: str, nproc: int) -> None:
    if not met:
        raise LayoutError(f"strategy {name} is {needs}; {nproc} requested: give another --nproc, or --layout")


_ALL = (
    Strategy(
        name="single",
        axes=(),
        least=1,
        when="the model and its batch fit on one device",
        costs="nothing is sent; more devices do not make it faster",
        layout=lambda nproc: Layout(),
    ),
    Strategy(
        name="ddp",
        axes=("dp",),
        least=1,
        when="the model fits on one device: the simplest, and usually the fastest",
        costs="each rank holds a full copy of everything; one all-reduce of the gradients per step",
        layout=lambda nproc: Layout(dp=nproc),
    ),
    Strategy(
        name="model",
        axes=("pp",),
        least=2,
        when="the model is too large for one device, and nothing simpler fits",
        costs="only one rank works at a time",
        layout=lambda nproc: Layout(pp=nproc, schedule="naive") if nproc > 1 else Layout(),
    ),
    Strategy(
        name="pipeline",
        axes=("pp",),
        least=2,
        when="the model has many layers, and the links between ranks are slow",
        costs="ranks are idle (p-1)/(m+p-1) of the time with p ranks and m micro-batches; activations between stages",
        layout=_pipeline,
    ),
    Strategy(
        name="zero1",
        axes=("dp",),
        least=1,
        when="the optimizer states do not fit on one device",
        costs="as ddp, and an all-gather of the updated parameters: 1.5 times the bytes of ddp",
        layout=lambda nproc: Layout(dp=nproc, zero=1),
    ),
    Strategy(
        name="zero2",
        axes=("dp",),
        least=1,
        when="the gradients do not fit either",
        costs="an all-gather of parameters and a reduce-scatter of gradients: the bytes of ddp (gloo: 1.5 times)",
        layout=lambda nproc: Layout(dp=nproc, zero=2),
    ),
    Strategy(
        name="zero3",
        axes=("dp",),
        least=1,
        when="the parameters do not fit either",
        costs="a second all-gather of parameters: 1.5 times the bytes of ddp (gloo: twice)",
        layout=lambda nproc: Layout(dp=nproc, zero=3),
        aliases=("fsdp",),
    ),
    Strategy(
        name="hsdp",
        axes=("dp",),
        least=4,
        when="zero3 fits within one node, and the links between nodes are slow (two groups; shardN for more)",
        costs="a full copy per group; the bytes of zero3 within a group, an all-reduce of gradient shards between them",
        layout=_two_groups,
    ),
    Strategy(
        name="tensor",
        axes=("tp",),
        least=2,
        when="single layers are too large for one device, and the link between ranks is fast",
        costs="four all-reduces of the activations per block",
        layout=lambda nproc: Layout(tp=nproc),
    ),
    Strategy(
        name="context",
        axes=("cp",),
        least=2,
        when="the activations of long sequences do not fit on one device",
        costs="keys and values go round a ring in every block; the bytes of ddp (zero3: of zero3) for the gradients",
        layout=lambda nproc: Layout(cp=nproc),
    ),
    Strategy(
        name="expert",
        axes=("dp", "ep"),
        least=2,
        when="the experts of a mixture do not fit on one device (two ranks divide them; epN for more, zero3 beside it)",
        costs="four all-to-alls of the tokens per block, as long as the busiest rank takes; the bytes of ddp or less",
        layout=_divided_experts,
    ),
    Strategy(
        name="2d",
        axes=("tp", "pp"),
        least=4,
        when="the model is too large for the tensor parallelism of one node",
        costs="all-reduces inside a node, activations between stages, a pipeline bubble",
        layout=_two_axes,
    ),
    Strategy(
        name="3d",
        axes=("dp", "tp", "pp"),
        least=8,
        when="a large model on many nodes",
        costs="those of 2d, and an all-reduce of the gradients over the data ranks",
        layout=_three_axes,
    ),
)
STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in _ALL}
ALIASES: dict[str, str] = {alias: strategy.name for strategy in _ALL for alias in strategy.aliases}


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
        raise LayoutError(f"{name} needs 2 processes or more, 1 requested: use --nproc 2 or more, or --strategy single")
    return strategy.layout(nproc)


def runs_alone(name: str) -> bool:
    """Return whether a strategy may run over one process: those of the data axis, with nothing to divide."""
    return find(name).least == 1


def stands_for(name: str, layout: Layout) -> bool:
    """Return whether a layout is a strategy's: by name, or as what `layout_of` gives for as many processes."""
    if name == name_of(layout):
        return True
    return layout.world_size == 1 and runs_alone(name) and layout_of(name, 1) == layout


def name_of(layout: Layout) -> str:
    """Return the strategy that divides the same axes as a layout; of those that do, the plainest.

    A combination of axes that no strategy has is named by them: `dp+tp`, `dp+pp`.
    """
    axes = tuple(axis.name for axis in words.printed() if axis.name in layout.axes)
    if layout.local:  # no strategy: it computes something else than one process
        return "local"
    if len(axes) > 1:
        return next((s.name for s in _ALL if s.axes == axes), "+".join(axes))
    if layout.cp > 1:
        return "context"
    if layout.pp > 1:
        return "model" if layout.schedule == "naive" else "pipeline"
    if layout.zero or layout.dp > 1:
        return of_data_ranks(layout.zero, groups=bool(layout.shard))
    return "tensor" if layout.tp > 1 else "+".join(axes) or "single"


def of_data_ranks(zero: int, *, groups: bool) -> str:
    """Return the strategy of data ranks alone. zero: the stage. groups: whether they share within groups (`shardN`).

    Hybrid sharding has gradients or parameters in shards: optimizer states divided within groups are those of zero1.
    """
    if groups and zero >= 2:
        return "hsdp"
    return f"zero{zero}" if zero else "ddp"


def names_in(layout: Layout) -> set[str]:
    """Return the name of a layout and those of its axes alone: ddp, tensor and dp+tp of dp2.tp2."""
    outer = {axis.name: axis.inside for axis in words.AXES if axis.inside is not None}
    degrees = {axis: getattr(layout, axis) for axis in layout.axes}
    alone = {
        axis: Layout(**{name: degrees[name] for name in (axis, outer.get(axis)) if name is not None})
        for axis in layout.axes
    }
    if "dp" in alone:
        alone["dp"] = alone["dp"].but(zero=layout.zero, shard=layout.shard, local=layout.local)
    if "pp" in alone:
        alone["pp"] = alone["pp"].but(schedule=layout.schedule)
    return {name_of(layout), *map(name_of, alone.values())}


def example(name: str, nproc: int) -> Layout:
    """Return a strategy's layout on so many processes, or on as many as it takes to have one."""
    try:
        return layout_of(name, nproc)
    except LayoutError:
        return find(name).layout(find(name).least)
