"""Predict the memory of parameters, gradients and optimizer states on a rank: the sum over what the axes say."""

from math import prod

from paralab.axes import used
from paralab.axes.axis import StageMemory
from paralab.axes.context import Planned
from paralab.axes.shapes import local_shapes, part, trained, weight_bytes


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
    layout = plan.layout
    stages = layout.pipeline.stages_of(pp_rank, layout.pp) if layout.schedule else (0,)
    weights = gradients = 0.0
    for module in (part(plan, stage) for stage in stages):
        shapes = local_shapes(module, plan)
        weights += sum(map(prod, shapes.values())) * weight_bytes(plan)
        gradients += sum(map(prod, trained(module, shapes).values())) * weight_bytes(plan)
    moments = 2 if plan.run.optimizer == "adamw" else 1 if plan.run.momentum else 0
    memory = StageMemory(parameters=weights, gradients=gradients, optimizer=moments * gradients)
    for axis in used(layout):
        memory = axis.held(memory, plan)
    return memory
