"""What the data axis refuses: stages, groups and words of a layout that do not go together."""

from typing import TYPE_CHECKING

from paralab.axes.blocks import block_of
from paralab.errors import LayoutError
from paralab.layout import Layout

if TYPE_CHECKING:
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec


def check_shard(shard: int, layout: Layout) -> None:
    """Raise LayoutError unless ZeRO divides over groups of so many data ranks."""
    if layout.cp > 1:
        raise LayoutError(
            f"shard{shard} with cp{layout.cp}: ZeRO divides over all data x context ranks there, leave shard{shard} out"
        )
    if not layout.zero:
        raise LayoutError(f"shard{shard} without ZeRO: nothing is sharded, add zero3, or leave shard{shard} out")
    if shard == layout.dp > 1:
        raise LayoutError(
            f"shard{shard} with dp{layout.dp}: one group of all data ranks is plain ZeRO, leave shard{shard} out"
        )
    if not 1 < shard < layout.dp or layout.dp % shard:
        nearest = sorted((n for n in range(2, layout.dp) if layout.dp % n == 0), key=lambda n: abs(n - shard))[:2]
        raise LayoutError(
            f"shard{shard} with dp{layout.dp}: two groups or more of at least 2 data ranks each are needed, "
            f"use {' or '.join(f'shard{n}' for n in nearest) or 'another dp'}, or leave shard{shard} out"
        )


def check_local(local: int, layout: Layout) -> None:
    """Raise LayoutError unless replicas over data ranks can train apart for so many steps."""
    if local < 1:
        raise LayoutError(f"local{local} in a layout: ranks train apart for at least 1 step, write local8")
    if layout.dp == 1:
        raise LayoutError(f"local{local} with dp1: there is nobody to train apart from, add a degree such as dp2")
    if layout.cp > 1:
        raise LayoutError(
            f"local{local} with cp{layout.cp}: ranks that share a sequence cannot train apart, leave one of them out"
        )
    if layout.zero:
        raise LayoutError(
            f"local{local} with zero{layout.zero}: ranks that train apart hold whole replicas, leave one of them out"
        )


def check_offload(layout: Layout) -> None:
    """Raise LayoutError where nothing could be kept in the memory of the host as the words of a layout say."""
    if layout.offload_parameters and layout.zero < 2:
        raise LayoutError(
            f"offload-parameters in layout {layout}: FSDP keeps its shards in the memory of the host, add zero3, "
            "or use offload-optimizer"
        )
    if layout.offload_parameters and layout.offload_optimizer:
        raise LayoutError(
            f"layout {layout}: offload-parameters keeps the optimizer states in the memory of the host as well, leave "
            "offload-optimizer out"
        )
    if layout.offload_optimizer and layout.local:
        raise LayoutError(f"offload-optimizer with local{layout.local}: leave one of them out")


def _in_one_module(name: str, other: str, spec: "ModelSpec[C]", config: "C") -> bool:
    """Return whether two names of a parameter are those of one module that has two names: that is sharded once."""
    modules = dict(spec.on_meta(config).named_modules(remove_duplicate=False))
    return modules[name.rpartition(".")[0]] is modules[other.rpartition(".")[0]]


def check_model(layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
    """Raise LayoutError where FSDP would shard a parameter twice, or ranks apart would have statistics apart."""
    if layout.local and spec.whole_batch:
        raise LayoutError(
            f"local{layout.local} with {spec.name}, whose loss is over the samples of all ranks together: ranks "
            f"cannot train apart, leave local{layout.local} out"
        )
    if layout.local and spec.statistics_over(config) != "none":
        raise LayoutError(
            f"local{layout.local} with {spec.name}, which takes statistics over the samples of a batch: ranks that "
            "train apart would each have their own, use norms without them (--norm group of resnet)"
        )
    blocks = spec.blocks(config) if layout.zero >= 2 else ()
    for name, origin in spec.tied_in(config).items() if layout.zero >= 2 else ():
        if block_of(name, blocks) != block_of(origin, blocks) and not _in_one_module(name, origin, spec, config):
            raise LayoutError(
                f"{name} of {spec.name} shares the storage of {origin}, and zero{layout.zero} shards each block by "
                "itself: use zero1, or say block_names=lambda config: (), which makes one unit of all"
            )
