"""Predict what a rank sends in one optimizer step, by axis, from shapes alone: the sum of what the axes say.

What an axis calls is known in closed form; the shapes it needs are read off a forward pass of each pipeline stage
on the meta device. The communication ledger counts the same numbers, to the byte, by ring algorithms and as the
backend sends them (paralab.axes.forms).
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from paralab.axes import used
from paralab.axes.axis import Call, Stage, Transfer
from paralab.axes.blocks import block_of
from paralab.axes.context import Planned
from paralab.axes.forms import ring_bytes, wire_bytes
from paralab.axes.initialise import tie
from paralab.axes.pipeline import splits_backward
from paralab.axes.precision import DTYPES, cast, in_dtype, weight_dtype
from paralab.axes.shapes import local_shapes, part, weight_bytes
from paralab.layout import Layout
from paralab.models.found import move_plain_tensors


@dataclass(frozen=True)
class Sent:
    """What one rank sends in a step: axis -> bytes, by ring algorithms and with its backend."""

    ring_bytes: dict[str, Fraction]
    wire_bytes: dict[str, Fraction]


def predicted_sent(plan: Planned, pp_rank: int = 0, *, device_type: str = "cpu", backend: str = "gloo") -> Sent:
    """Return what each rank of one pipeline rank sends in a step of the native engine. See `predicted_transfers`."""
    transfers = predicted_transfers(plan, pp_rank, device_type=device_type)

    def each(size: Callable[[str, int | Fraction, int], Fraction]) -> dict[str, Fraction]:
        return {
            axis: sum((size(call.op, call.payload_bytes, call.ranks) for call in calls), Fraction(0))
            for axis, calls in transfers.items()
        }

    return Sent(ring_bytes=each(ring_bytes), wire_bytes=each(partial(wire_bytes, backend=backend)))


def predicted_transfers(
    plan: Planned, pp_rank: int = 0, *, device_type: str = "cpu", noted: "Sequence[Noted] | None" = None
) -> dict[str, list[Transfer]]:
    """Return {axis: what each rank of one pipeline rank calls} in a step of the native engine.

    noted: what `noted_stages` gave for all stages of this plan, or of one that differs in what no module depends on.

    Axes are named as by `CommLedger`: what all ranks reduce together is "world", or the one axis there is; an axis
    that has several dims in the mesh is named by them for what passes along each. Where rows do not divide by dp, it is
    the rank that sends most. device_type decides what autocast lowers. An axis that recomputed blocks use is left out
    under schedules that split backward: there torch computes a block again for each of its layers, once a layer
    (torch.distributed.pipelining._backward, stage_backward_weight).
    """
    layout = plan.layout
    if layout.world_size == 1:
        return {}
    called: dict[str, list[Transfer]] = defaultdict(list)
    # the engine's own: loss and gradient norm
    called[layout.everyone].append(Transfer("all_reduce", layout.world_size, 2 * weight_bytes(plan), when="norm"))
    unknown = set()
    mine = layout.pipeline.stages_of(pp_rank, layout.pp) if layout.schedule else (0,)
    every = noted_stages(plan, max(mine), device_type=device_type) if noted is None else noted
    for one in (one for one in every if one.stage.index in mine):
        stage = replace(one.stage, pp_rank=pp_rank)
        for call in one.calls:
            called[call.axis] += _over_micro_batches(call, plan)
            unknown |= {call.axis} if _recomputed(call, plan) else set()
        for axis in used(layout):
            for name, transfer in axis.sent(stage, plan):
                called[name].append(transfer)
    unknown = unknown if splits_backward(plan) else set()
    return {axis: transfers for axis, transfers in called.items() if axis not in unknown}


@dataclass
class Noted:
    """A stage, and what its modules communicate in one micro-batch."""

    stage: Stage
    calls: list[Call] = field(default_factory=list)


# --- a forward pass of each stage, on the meta device


def noted_stages(plan: Planned, last: int, *, device_type: str = "cpu") -> Iterator[Noted]:
    """Yield the stages from the first to the last that is wanted, each run on what the one before it returned."""
    layout, precision = plan.layout, plan.run.precision
    lower, casts = precision in ("bf16", "fp16"), casts_weights(plan)
    inputs, _ = plan.spec.example(plan.model_config, plan.division.micro_batch_size)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        hidden = tuple(in_dtype(torch.empty_like(x, device=device_type), weight_dtype(precision)) for x in inputs)
    for index in range(last + 1):
        module, pp_rank = part(plan, index), layout.pipeline.rank_of(index, layout.pp) if layout.schedule else 0
        for axis in used(layout):
            axis.as_seen(module, plan)
        stage = Stage(index, pp_rank, module, local_shapes(module, plan), received_bytes=_boundary(hidden, layout))
        noted = Noted(stage)
        if casts:
            hidden = cast(module, hidden, precision)
        autocast = torch.autocast(device_type, DTYPES[precision], enabled=lower and not casts)
        with fake, _noting(noted, plan), autocast:
            module.to_empty(device=device_type)
            move_plain_tensors(module, device_type)
            tie(module, plan.spec.tied_in(plan.model_config))
            out = module(*hidden)
        hidden = tuple(in_dtype(x, weight_dtype(precision)) for x in (out if isinstance(out, tuple) else (out,)))
        hidden = tuple(x.detach().requires_grad_(x.is_floating_point()) for x in hidden)
        noted.stage = replace(stage, sent_bytes=_boundary(hidden, layout))
        yield noted


def casts_weights(plan: Planned) -> bool:
    """Return whether modules compute in a lower precision with weights that were cast to it, and not by autocast."""
    return plan.run.precision in ("bf16", "fp16") and any(axis.casts(plan.layout) for axis in used(plan.layout))


def _boundary(hidden: tuple[Tensor, ...], layout: Layout) -> int:
    """Return the bytes that cross between stages."""
    if layout.pp == 1:
        return 0
    for axis in used(layout):
        hidden = tuple(axis.boundary(x, layout) for x in hidden)
    return sum(x.nbytes for x in hidden)


@contextlib.contextmanager
def _noting(noted: Noted, plan: Planned) -> Iterator[None]:
    """Note the collectives of the modules that run inside."""
    running: list[int | None] = [None]  # the block
    axes, blocks = used(plan.layout), plan.spec.blocks(plan.model_config)

    def before(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        running[0] = block_of(name, blocks)
        for axis in axes if inputs and isinstance(inputs[0], Tensor) else ():
            called = axis.calls_before(name, module, inputs[0], plan)
            noted.calls += [call for call in called if inputs[0].requires_grad or not call.backward]

    def after(name: str, module: nn.Module, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) and out else out
        for axis in axes if isinstance(out, Tensor) else ():
            noted.calls += axis.calls_after(name, module, out, plan)

    def keep(tensor: Tensor) -> Tensor:
        noted.calls = [
            replace(call, again=call.again or (call.block == running[0] and not call.backward)) for call in noted.calls
        ]
        return tensor

    hooks = []
    for name, module in noted.stage.part.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: before(name, m, args)))
        hooks.append(module.register_forward_hook(lambda m, args, out, name=name: after(name, m, out)))
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()


# --- how often


def _over_micro_batches(call: Call, plan: Planned) -> Iterator[Transfer]:
    """Yield a collective as often as it runs in one step: once a micro-batch, and again where forward is recomputed."""
    times, ranks = plan.division.chunks, plan.layout.size(call.axis)
    once = Transfer(call.op, ranks, times * call.payload_bytes, times, "backward" if call.backward else "forward")
    yield once
    if _recomputed(call, plan):
        yield replace(once, when="backward")


def _recomputed(call: Call, plan: Planned) -> bool:
    every = plan.run.checkpoint_every
    return bool(call.again and every and call.block is not None and call.block % every == 0)
