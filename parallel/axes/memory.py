"""Predict the memory of parameters, gradients and optimizer states on the fullest rank of a layout.

The arithmetic is that of Rajbhandari et al. 2020 (ZeRO, section 3.1) for the recipe used here: weights, gradients
and two Adam moments in fp32, 16 bytes a parameter (12 with SGD and momentum). Stage 1 divides the moments by the data
ranks (under `shardN` by those of a group), stages 2 and 3 everything. What FSDP gathers while a block runs is an
activation, not a state; but the whole gradients of one unit (a block, or all outside the blocks) stand beside the
shards until they are reduced, in a pipeline those of a whole stage.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from parallel.axes.context import Planned
from parallel.axes.pipeline import cut_stage
from parallel.axes.precision import DTYPES, weight_dtype
from parallel.layout import SCHEDULES

_WHOLE = ("sequence", "scatter_sequence")  # styles that split no parameter


@dataclass(frozen=True)
class StateBytes:
    """Bytes of the model's state on one rank."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> int:
        return round(self.parameters + self.gradients + self.optimizer)


def state_bytes(work: Planned) -> StateBytes:
    """Return the predicted state of the rank that holds most."""
    return _state_bytes(work, max(_held_parameters(work, pp_rank) for pp_rank in range(work.layout.pp)))


def state_bytes_of_all(work: Planned) -> int:
    """Return the predicted state of all ranks together."""
    layout = work.layout
    held = (_held_parameters(work, pp_rank) for pp_rank in range(layout.pp))
    return sum(_state_bytes(work, parameters).total for parameters in held) * layout.dp * layout.tp


def _state_bytes(work: Planned, held: float) -> StateBytes:
    layout = work.layout
    weights = held * weight_dtype(work.run.precision).itemsize
    moments = 2 if work.run.optimizer == "adamw" else 1 if work.run.momentum else 0
    return StateBytes(
        parameters=weights / (layout.dp_shard if layout.zero >= 2 else 1),
        gradients=_sharded_gradients(work, weights) if layout.zero >= 2 else weights,
        optimizer=moments * weights / layout.dp_shard,
    )


def _held_parameters(work: Planned, pp_rank: int) -> float:
    """Count the parameters of one pipeline rank, those of split layers by their share."""
    layout = work.layout
    stages = SCHEDULES[layout.schedule].stages_of(pp_rank, layout.pp) if layout.schedule else (0,)
    plan = {} if layout.tp == 1 else work.spec.tensor_plan(work.model_config)
    split = [pattern for pattern, style in plan.items() if style not in _WHOLE]
    return sum(_count(_part(work, stage), split, layout.tp) for stage in stages)


def _sharded_gradients(work: Planned, weights: float) -> float:
    """Return the bytes of gradients at their peak: shards, and the largest set still whole, in the precision used."""
    whole, ranks = _unreduced(work), work.layout.dp_shard
    kept = weight_dtype(work.run.precision).itemsize / ranks
    return weights / ranks + whole * (DTYPES[work.run.precision].itemsize - kept)


def _unreduced(work: Planned) -> float:
    """Count the largest set of gradients that FSDP reduces at once."""
    sizes = []
    for stage in range(work.layout.stages):
        part = _part(work, stage)
        blocks = [sum(p.numel() for p in block.parameters()) for block in part.blocks.values()]
        whole = sum(p.numel() for p in part.parameters())
        sizes.append(whole if work.layout.pp > 1 else max(whole - sum(blocks), *blocks))
    return max(sizes) / work.layout.tp


def _part(work: Planned, stage: int) -> nn.Module:
    return cut_stage(work.new_model(), spec=work.spec, config=work.model_config, layout=work.layout, stage=stage)


def _count(part: nn.Module, split: list[str], tp: int) -> float:
    total = 0.0
    for name, parameter in part.named_parameters():
        module = name.rpartition(".")[0]
        is_split = any(fnmatchcase(module, pattern) for pattern in split)
        # The bias of a layer split by inputs stays whole; it is a vector, and small.
        total += parameter.numel() / (tp if is_split else 1)
    return total
