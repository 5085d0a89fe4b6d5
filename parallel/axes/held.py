"""Predict the memory of parameters, gradients and optimizer states on a rank: the sum over what the axes say."""

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from paralab.axes import eight_bits, used
from paralab.axes.axis import StageMemory
from paralab.axes.context import Planned
from paralab.axes.optimizer import share_of_rows
from paralab.axes.shapes import local_shapes, part, trained, weight_bytes
from paralab.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_COUNT_BYTES = 4  # of a count of steps, fp32, that Adam keeps with each tensor


def state_bytes(plan: Planned) -> StageMemory:
    """Return the predicted state of the rank that holds most, in bytes."""
    return max(
        (state_bytes_of(plan, pp_rank) for pp_rank in range(plan.layout.pp)), key=lambda memory: memory.everywhere
    )


def state_bytes_of_all(plan: Planned) -> int:
    """Return the predicted state of all ranks together, in bytes, on devices and hosts."""
    each = sum(state_bytes_of(plan, pp_rank).everywhere for pp_rank in range(plan.layout.pp))
    return each * plan.layout.world_size // plan.layout.pp


def state_bytes_of(plan: Planned, pp_rank: int) -> StageMemory:
    """Return the predicted state of a pipeline rank's ranks: of what they hold whole, then as each axis divides it."""
    weights, stages = 0, []
    for module, shapes in _parts(plan, pp_rank):
        weights += sum(map(prod, shapes.values())) * weight_bytes(plan)
        stages.append(trained(module, shapes))
    gradients = sum(prod(shape) for shapes in stages for shape in shapes.values()) * weight_bytes(plan)
    kept = max(sum(kept_bytes(numel, plan) for numel in pieces) for pieces in _updated(plan, pp_rank))
    memory = StageMemory(parameters=weights, gradients=gradients, optimizer=kept)
    for axis in used(plan.layout):
        memory = axis.held(memory, stages, plan)
    return memory


def check_packed(plan: Planned) -> float:
    """Return which share of the moments will be in 8 bits, over all ranks. Raises: ConfigError where it is none."""
    pieces = [n for pp_rank in range(plan.layout.pp) for of_rank in _updated(plan, pp_rank) for n in of_rank]
    packed = sum(n for n in pieces if eight_bits.is_packed(n))
    if not packed:
        raise ConfigError(
            f"--optimizer {eight_bits.NAME} under layout {plan.layout}: the largest of {max(pieces, default=0):,} "
            f"numbers, no tensor that a rank updates has {eight_bits.LEAST:,} or more and is a multiple of "
            f"{eight_bits.BLOCK}, so that all states would be fp32: use a larger --size, or --optimizer adamw"
        )
    return packed / sum(pieces)


def _parts(plan: Planned, pp_rank: int) -> "Iterator[tuple[nn.Module, dict[str, tuple[int, ...]]]]":
    """Yield the parts of a pipeline rank, with the shapes that its ranks work with, by name."""
    layout = plan.layout
    for stage in layout.pipeline.stages_of(pp_rank, layout.pp) if layout.schedule else (0,):
        module = part(plan, stage)
        yield module, local_shapes(module, plan)


def _updated(plan: Planned, pp_rank: int) -> list[list[int]]:
    """Return for each rank of those that divide updates how many numbers it updates of each parameter."""
    axes = used(plan.layout)
    shapes = [pair for module, shapes in _parts(plan, pp_rank) for pair in trained(module, shapes).items()]
    over = [prod(axis.updating(name, plan) for axis in axes) for name, _ in shapes]
    return [
        [_piece(shape, rank=rank % ranks, ranks=ranks) for (_, shape), ranks in zip(shapes, over, strict=True)]
        for rank in range(max(over, default=1))
    ]


def _piece(shape: tuple[int, ...], *, rank: int, ranks: int) -> int:
    """Return how many numbers of a tensor a rank updates, where so many divide its rows; all share one of shape ()."""
    if not shape:
        return 1
    rows = share_of_rows(shape[0], rank=rank, ranks=ranks)
    return (rows.stop - rows.start) * prod(shape[1:])


def kept_bytes(numel: int, plan: Planned) -> int:
    """Return the bytes that the optimizer keeps of a piece of so many numbers: moments, and a count of steps."""
    element = weight_bytes(plan)
    if plan.run.optimizer == "sgd":
        return numel * element if plan.run.momentum else 0
    moment = eight_bits.moment_bytes(numel, element) if plan.run.optimizer == eight_bits.NAME else numel * element
    return 2 * moment + _COUNT_BYTES
