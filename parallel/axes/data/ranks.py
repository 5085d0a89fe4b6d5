"""Which ranks are replicas, which of them ZeRO divides over, and along which dims of the mesh. Imports no torch."""

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from paralab.layout import Layout

if TYPE_CHECKING:
    from paralab.axes.context import Planned

REPLICATE, SHARD = "dp_replicate", "dp_shard"  # the dims of the axis under `shardN`: neighbours share a shard
JOINED = "dp_cp"  # data and context ranks together
EXPERT_REPLICATE = "edp"  # the dim along which ranks share experts, where others divide them (`ep`)
EXPERT_DATA = "edp_data"  # what is of data ranks in it, where context ranks share them too


def replicas(layout: Layout) -> int:
    """Return how many ranks have the same weights and other tokens: of other samples, or of the same (context)."""
    return layout.dp * layout.cp


def replica_dim(layout: Layout) -> str:
    """Return the dim of the mesh that gradients are averaged over: the data axis, joined with the context axis."""
    if layout.cp == 1:
        return "dp"
    return "cp" if layout.dp == 1 else JOINED


def shard_ranks(layout: Layout) -> int:
    """Return the ranks that ZeRO divides over: all that gradients are averaged over, or a group; 1 without ZeRO."""
    return (layout.shard or replicas(layout)) if layout.zero else 1


def shard_dim(layout: Layout) -> str:
    """Return the dim of the mesh that ZeRO divides over."""
    return SHARD if layout.shard else replica_dim(layout)


def sharding_dims(layout: Layout, *, experts: bool = False) -> tuple[str, ...]:
    """Return the dims of the mesh that FSDP works on: one of all replicas, or (replicas, shards).

    experts: whether of experts that data ranks divide, which fewer of them share.
    """
    dim = EXPERT_REPLICATE if experts else shard_dim(layout)
    return (REPLICATE, dim) if layout.shard else (dim,)


def overlaps(layout: Layout) -> bool:
    """Return whether DistributedDataParallel averages gradients during backward: it knows no other axis."""
    alone = replicas(layout) == layout.world_size > 1 and layout.ep == 1
    return alone and layout.zero < 2 and not layout.local


def is_expert(name: str, plan: "Planned") -> bool:
    """Return whether the parameter of a name is of experts that data ranks divide."""
    experts = plan.spec.experts
    return plan.layout.ep > 1 and experts is not None and fnmatchcase(name.rpartition(".")[0], experts)


def sharers(name: str, plan: "Planned") -> tuple[str, int]:
    """Return the dim of the mesh over which ZeRO divides the parameter of a name, and over how many ranks."""
    layout = plan.layout
    if is_expert(name, plan):
        return EXPERT_REPLICATE, shard_ranks(layout) // layout.ep
    return shard_dim(layout), shard_ranks(layout)


def averaged_over(name: str, plan: "Planned") -> list[tuple[str, int]]:
    """Return the dims of the mesh over which the gradient of the parameter of a name is summed, and their ranks.

    Of whole gradients: an expert's is summed within the groups of `shardN`, and then between them.
    """
    layout = plan.layout
    if is_expert(name, plan):
        return [(dim, layout.size(dim)) for dim in reversed(sharding_dims(layout, experts=True))]
    return [(replica_dim(layout), replicas(layout))]
