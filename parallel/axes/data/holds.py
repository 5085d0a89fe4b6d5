"""What ZeRO holds beyond equal shares, and which ranks have equal ones."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

from paralab.axes.axis import StageMemory
from paralab.axes.blocks import block_of
from paralab.axes.data.ranks import is_expert, shard_ranks, sharers
from paralab.axes.shapes import blocks_in, compute_bytes, local_shapes, parts, trained, weight_bytes
from paralab.layout import Layout

if TYPE_CHECKING:
    from paralab.axes.context import Planned


def alike(plan: "Planned", replicas_of: Callable[[int], Sequence[int]], ranks: int) -> list[list[int]]:
    """Return the ranks of an axis in groups of those whose replicas have equal shares of the rows.

    replicas_of: the replicas, in the order of `replica_dim`, that a rank of the axis takes part in.
    """
    shares: dict[tuple[int, ...], list[int]] = {}
    rows = {shape[0] for part in parts(plan) for shape in local_shapes(part, plan).values() if shape}
    for rank in range(ranks):
        mine = tuple(share for replica in replicas_of(rank) for share in _share(replica, rows, plan.layout))
        shares.setdefault(mine, []).append(rank)
    return list(shares.values())


def _share(replica: int, rows: Collection[int], layout: Layout) -> Iterator[int]:
    """Yield how many rows a replica has of parameters with so many."""
    rank = replica % shard_ranks(layout)
    for n in rows:
        block = -(-n // shard_ranks(layout))
        yield max(0, min(block, n - rank * block))


def with_experts(memory: StageMemory, plan: "Planned", ranks: int) -> StageMemory:
    """Return parameters and gradients that all data ranks would share, with those of experts shared by fewer."""
    _, sharing = next(
        sharers(name, plan) for part in parts(plan) for name, _ in part.named_parameters() if is_expert(name, plan)
    )
    held = max(
        sum(prod(shape) for name, shape in local_shapes(part, plan).items() if is_expert(name, plan))
        for part in parts(plan)
    )
    more = held * weight_bytes(plan) * (1 / sharing - 1 / ranks)
    return memory.but(parameters=memory.parameters + more, gradients=memory.gradients + more)


def unreduced_bytes(plan: "Planned", ranks: int) -> float:
    """Return what the largest set of gradients that FSDP reduces at once takes beyond its own shards.

    What is gathered while a block runs is an activation, not a state; but the whole gradients of one unit (a block, or
    all outside the blocks) stand beside the shards until they are reduced, in a pipeline those of a whole stage.
    """
    largest = 0.0
    for part in parts(plan):
        units: dict[tuple[int | None, bool], float] = defaultdict(float)
        for name, shape in trained(part, local_shapes(part, plan)).items():
            expert = is_expert(name, plan)  # those of a block are a unit of their own
            unit = (block_of(name, blocks_in(plan)), expert) if plan.layout.pp == 1 else (None, False)
            share = sharers(name, plan)[1] if expert else ranks
            units[unit] += prod(shape) * (compute_bytes(plan) - weight_bytes(plan) / share)
        largest = max(largest, *units.values(), 0)
    return largest
