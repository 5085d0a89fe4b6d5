"""What is known of a run's tensors before anything runs: sizes of elements, the stages of a model, local shapes."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from paralab.axes.axis import Axis
from paralab.layout import words

if TYPE_CHECKING:
    from torch import nn

    from paralab.axes.context import Planned


def weight_bytes(plan: "Planned") -> int:
    """Return the bytes of an element of parameters, gradients and optimizer states."""
    from paralab.axes.precision import weight_dtype

    return weight_dtype(plan.run.precision).itemsize


def compute_bytes(plan: "Planned") -> int:
    """Return the bytes of an element in the precision that matrices are multiplied in."""
    from paralab.axes.precision import DTYPES

    return DTYPES[plan.run.precision].itemsize


def blocks_in(plan: "Planned") -> tuple[str, ...]:
    """Return the full names of the blocks of the model, in order."""
    return plan.spec.blocks(plan.model_config)


def parts(plan: "Planned") -> "Iterator[nn.Module]":
    """Yield the stages of a model, first to last, on the meta device; the whole model where there is one stage."""
    return (part(plan, stage) for stage in range(plan.layout.stages))


def part(plan: "Planned", stage: int) -> "nn.Module":
    """Return one stage of a model on the meta device."""
    from paralab.axes.pipeline.stages import cut_stage

    return cut_stage(plan.new_model(), spec=plan.spec, config=plan.model_config, layout=plan.layout, stage=stage)


def local_shape(name: str, shape: tuple[int, ...], plan: "Planned") -> tuple[int, ...]:
    """Return the shape that a rank works with of the parameter of a name, given that of the whole parameter."""
    for axis in words.AXES:
        if isinstance(axis, Axis) and axis.is_used(plan.layout):
            shape = axis.local_shape(name, shape, plan)
    return shape


def trained(part: "nn.Module", shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes, of those by name, of parameters that are trained: frozen ones have no gradient."""
    names = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    return {name: shape for name, shape in shapes.items() if name in names}


def local_shapes(part: "nn.Module", plan: "Planned") -> dict[str, tuple[int, ...]]:
    """Return the shape that a rank works with of each parameter of a part, by name."""
    return {name: local_shape(name, tuple(p.shape), plan) for name, p in part.named_parameters()}
