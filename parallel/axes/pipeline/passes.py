"""The passes of each rank, in the order in which a schedule of torch.distributed.pipelining runs them."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from torch import nn

from paralab.layout import SCHEDULES, Schedule, schedules
from paralab.layout.schedules import Pass, ScheduleName

_CLASSES: Mapping[ScheduleName, str] = {
    "naive": "ScheduleGPipe",
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zero-bubble": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}


def class_of(schedule: Schedule) -> Any:
    from torch.distributed.pipelining import schedules as of_torch  # half a second: it brings the compiler along

    return getattr(of_torch, _CLASSES[schedule.name])


def is_single(schedule: Schedule) -> bool:
    """Return whether torch's class of a schedule takes the one stage of a rank, and not a list of its stages."""
    return SCHEDULES[schedule.name].stages_per_rank == 1


def pass_order(schedule: str, *, pp: int, micro_batches: int) -> list[list[Pass]]:
    """Return the passes of each rank in the order in which a schedule runs them. schedule: as layouts write it."""
    found = schedules.find(schedule)
    assert found is not None, schedule
    if is_single(found):
        warm_up = {"naive": 1, "gpipe": micro_batches}  # forwards before the first backward
        return [_single_stage_order(rank, micro_batches, warm_up.get(schedule, pp - rank)) for rank in range(pp)]
    # torch plans for all ranks when a schedule is made, from numbers alone.
    held, stages = found.stages_of(0, pp), found.stages_per_rank * pp
    numbers = [
        SimpleNamespace(stage_index=stage, num_stages=stages, group_size=pp, group_rank=0, submod=nn.Identity())
        for stage in held
    ]
    planned = class_of(found)(numbers, micro_batches, loss_fn=lambda *_: None).pipeline_order
    return [list(_passes(planned[rank])) for rank in range(pp)]


def _single_stage_order(stage: int, micro_batches: int, warm_up: int) -> list[Pass]:
    order: list[Pass] = []
    for i in range(micro_batches + warm_up - 1):
        if i < micro_batches:
            order.append(Pass("F", stage, i))
        if i >= warm_up - 1:
            order.append(Pass("B", stage, i - warm_up + 1))
    return order


def _passes(actions: list[Any]) -> Iterator[Pass]:
    for action in actions:
        if action is not None and action.sub_actions:  # a forward and a backward, which torch runs in turn
            yield from _passes(action.sub_actions)
        elif action is not None:
            yield Pass(action.computation_type.value, action.stage_index, action.microbatch_index)
