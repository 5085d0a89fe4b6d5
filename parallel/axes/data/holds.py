"""What ZeRO holds beyond equal shares, and which ranks have equal ones."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from paralab.axes.axis import Stage, StageMemory, Unit
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


def with_experts(
    memory: StageMemory, stages: Sequence[Mapping[str, tuple[int, ...]]], plan: "Planned", ranks: int
) -> StageMemory:
    """Return parameters and gradients that all data ranks would share, with those of experts shared by fewer.

    stages: of a rank.
    """
    experts = [(name, shape) for shapes in stages for name, shape in shapes.items() if is_expert(name, plan)]
    more = sum(_shard(name, shape, plan) - prod(shape) * weight_bytes(plan) / ranks for name, shape in experts)
    return memory.but(parameters=memory.parameters + more, gradients=memory.gradients + more)


def unreduced_bytes(stages: Sequence[Mapping[str, tuple[int, ...]]], plan: "Planned") -> float:
    """Return what the gradients that FSDP reduces at once take beyond its own shards. stages: of a rank, in order.

    What is gathered while a block runs is an activation, not a state; but the whole gradients of one unit (a block, or
    all outside the blocks) stand beside the shards until they are reduced, in a pipeline those of a whole stage.
    """
    if plan.layout.pp > 1:
        return _in_pipeline(stages, plan)
    return max(0.0, *(_in_backward(shapes, plan) for shapes in stages))


def units(stage: Stage, plan: "Planned") -> list[Unit]:
    """Return what FSDP gathers of a stage at a time: a block, the experts of a block, and all outside of them."""
    names: dict[tuple[int | None, bool], list[str]] = defaultdict(list)
    for name in stage.shapes:
        names[block_of(name, blocks_in(plan)), is_expert(name, plan)].append(name)
    stays = plan.layout.zero == 2 or plan.layout.pp > 1
    return [_unit(stage, plan, some, stays=stays or block is None) for (block, _), some in names.items()]


def _unit(stage: Stage, plan: "Planned", names: Sequence[str], *, stays: bool) -> Unit:
    numbers = sum(prod(stage.shapes[name]) for name in names)
    gradients = trained(stage.part, {name: stage.shapes[name] for name in names})
    return Unit(
        names=tuple(names),
        whole_bytes=numbers * compute_bytes(plan),
        reduced_bytes=sum(map(prod, gradients.values())) * weight_bytes(plan),
        shard_bytes=round(sum(_shard(name, shape, plan) for name, shape in gradients.items())),
        stays=stays,
    )


def _in_pipeline(stages: Sequence[Mapping[str, tuple[int, ...]]], plan: "Planned") -> float:
    """Return it for a rank of a pipeline: the gradients of a stage are whole until its last micro-batch.

    With more micro-batches than ranks all its stages have some by then; else the later ones are reduced before the
    earlier ones begin.
    """
    shards = [sum(_shard(name, shape, plan) for name, shape in shapes.items()) for shapes in stages]
    whole = [sum(map(prod, shapes.values())) * weight_bytes(plan) for shapes in stages]
    more = [_beside_the_last(shapes, plan) for shapes in stages]
    if plan.division.chunks > plan.layout.pp:
        return sum(whole) + max(more) - sum(shards)
    return max(whole[i] + more[i] - sum(shards[: i + 1]) for i in range(len(stages)))


def _beside_the_last(shapes: Mapping[str, tuple[int, ...]], plan: "Planned") -> float:
    """Return by how much the gradients of a stage grow as FSDP reduces the first of them: those outside the blocks.

    The last gradient of those is freed only when the shards of all of them are there (torch.distributed.fsdp,
    foreach_reduce).
    """
    first = {name: shape for name, shape in shapes.items() if block_of(name, blocks_in(plan)) is None}
    freed = sum(prod(shape) * weight_bytes(plan) for shape in list(first.values())[:-1])
    return max(0.0, sum(_shard(name, shape, plan) for name, shape in first.items()) - freed)


def _in_backward(shapes: Mapping[str, tuple[int, ...]], plan: "Planned") -> float:
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
        shards[unit] += _shard(name, shape, plan)
        behind += prod(shape) * compute_bytes(plan) if name.partition(".")[0] in (plan.spec.last or ()) else 0.0
    every = sum(shards.values())
    done = every if plan.division.chunks > 1 and not plan.layout.shard else 0.0
    most = 0.0
    for unit in sorted(whole, key=lambda unit: (unit[0] is None, -(unit[0] or 0), not unit[1])):
        most = max(most, done + whole[unit] + (behind if unit[0] is not None else 0.0))
        done += shards[unit] if done < every else 0.0
    return most - every


def _shard(name: str, shape: tuple[int, ...], plan: "Planned") -> float:
    """Return the bytes of a rank's shard of the gradient of a parameter."""
    return prod(shape) * weight_bytes(plan) / sharers(name, plan)[1]
