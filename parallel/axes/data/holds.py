"""What ZeRO holds beyond equal shares, and which ranks have equal ones."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    """Return what the gradients that FSDP reduces at once take beyond its own shards, where that is most.

    What is gathered while a block runs is an activation, not a state; but the whole gradients of one unit (a block, or
    all outside the blocks) stand beside the shards until they are reduced, in a pipeline those of a whole stage.
    """
    held = _in_pipeline if plan.layout.pp > 1 else _in_backward
    return max(0.0, *(held(trained(part, local_shapes(part, plan)), plan, ranks) for part in parts(plan)))


def _in_pipeline(shapes: Mapping[str, tuple[int, ...]], plan: "Planned", ranks: int) -> float:
    """Return it for a stage: all its gradients are whole until the pipeline flushes."""
    return sum(prod(shape) * compute_bytes(plan) - _shard(name, shape, plan, ranks) for name, shape in shapes.items())


def _in_backward(shapes: Mapping[str, tuple[int, ...]], plan: "Planned", ranks: int) -> float:
    """Return it for a whole model, whose blocks are reduced from the last to the first and all else at the end.

    While a block is reduced, those before it have no shards of their gradients yet, unless an earlier micro-batch left
    them (between groups of `shardN` it leaves none); what lies behind the blocks has its whole gradients by then.
    """
    whole: dict[tuple[int | None, bool], float] = defaultdict(float)
    shards: dict[tuple[int | None, bool], float] = defaultdict(float)
    behind = 0.0
    for name, shape in shapes.items():
        unit = block_of(name, blocks_in(plan)), is_expert(name, plan)  # the experts of a block are a unit of their own
        whole[unit] += prod(shape) * compute_bytes(plan)
        shards[unit] += _shard(name, shape, plan, ranks)
        behind += prod(shape) * compute_bytes(plan) if name.partition(".")[0] in (plan.spec.last or ()) else 0.0
    every = sum(shards.values())
    done = every if plan.division.chunks > 1 and not plan.layout.shard else 0.0
    most = 0.0
    for unit in sorted(whole, key=lambda unit: (unit[0] is None, -(unit[0] or 0), not unit[1])):
        most = max(most, done + whole[unit] + (behind if unit[0] is not None else 0.0))
        done += shards[unit] if done < every else 0.0
    return most - every


def _shard(name: str, shape: tuple[int, ...], plan: "Planned", ranks: int) -> float:
    """Return the bytes of a rank's shard of the gradient of a parameter."""
    return prod(shape) * weight_bytes(plan) / sharers(name, plan)[1]
