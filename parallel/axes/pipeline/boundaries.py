"""What passes between the stages of a pipeline, found out without values."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from paralab.axes import used
from paralab.axes.context import Planned
from paralab.axes.meta import AllOnMeta
from paralab.axes.pipeline.stages import stage_of
from paralab.axes.precision import in_dtype, weight_dtype
from paralab.layout import Layout
from paralab.models.spec import ModelSpec

_BOUNDARIES: WeakKeyDictionary[ModelSpec, dict[tuple[Any, ...], list[tuple[Tensor, ...]]]] = WeakKeyDictionary()


def boundary_shapes(plan: Planned) -> list[tuple[Tensor, ...]]:
    """Return what enters each stage, and what leaves the last, for one micro-batch, as meta tensors.

    Returns: stages + 1 tuples. The first is the model's inputs, (micro_batch, ...); then what a rank hands on, as its
    axes divide it; the last is the loss, shape ().
    """
    known = _BOUNDARIES.setdefault(plan.spec, {})
    key = plan.model_config, plan.layout, plan.division.micro_batch_size, weight_dtype(plan.run.precision)
    if key not in known:  # a dry run asks for each of its ranks
        known[key] = _boundary_shapes(plan)
    return known[key]


def _boundary_shapes(plan: Planned) -> list[tuple[Tensor, ...]]:
    inputs, _ = plan.spec.example(plan.model_config, plan.division.micro_batch_size)
    dtype = weight_dtype(plan.run.precision)
    hidden = tuple(in_dtype(x, dtype).to("meta") for x in inputs)
    shapes = [hidden]
    whole = plan.new_model()
    for axis in used(plan.layout):
        axis.as_seen(whole, plan)
    for stage in range(plan.layout.stages - 1):
        with torch.device("meta"), AllOnMeta():
            out = stage_of(whole, plan, stage)(*hidden)
        hidden = out if isinstance(out, tuple) else (out,)
        shapes.append(tuple(_handed_on(x, plan.layout).detach().requires_grad_() for x in hidden))
    return [*shapes, (torch.empty((), dtype=dtype, device="meta"),)]  # the last stage returns the loss


def _handed_on(hidden: Tensor, layout: Layout) -> Tensor:
    """Return the piece of what a stage returned that a rank hands to the next one."""
    for axis in used(layout):
        hidden = axis.boundary(hidden, layout)
    return hidden
