"""Predict what a rank sends in one optimizer step, by axis, from shapes alone.

What a strategy calls is known in closed form; the shapes it needs are read off a forward pass of each pipeline stage
on the meta device. The communication ledger counts the same numbers, to the byte, by ring algorithms and as the
backend sends them (parallel.axes.forms).
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.spec import Reducing, Style
from parallel.axes.context import Planned
from parallel.axes.forms import fsdp_padded_numel, ring_bytes, wire_bytes
from parallel.axes.initialise import tie
from parallel.axes.pipeline import cut_stage, pass_order
from parallel.axes.precision import DTYPES, in_dtype, weight_dtype
from parallel.layout import DP_REPLICATE, SCHEDULES

_SPLIT_DIM: Mapping[Style, int] = {"column": 0, "row": 1, "vocab_embedding": 0, "vocab_loss": 0, "channels": 0}


@dataclass(frozen=True)
class Transfer:
    """Calls of one collective in a step. payload_bytes: of all of them together."""

    op: str
    ranks: int
    payload_bytes: int


@dataclass(frozen=True)
class Sent:
    """What one rank sends in a step: axis -> bytes, by ring algorithms and with its backend."""

    ring_bytes: dict[str, Fraction]
    wire_bytes: dict[str, Fraction]


def predicted_sent(work: Planned, pp_rank: int = 0, *, device_type: str = "cpu", backend: str = "gloo") -> Sent:
    """Return what each rank of one pipeline rank sends in a step of the native engine. See `predicted_transfers`."""
    transfers = predicted_transfers(work, pp_rank, device_type=device_type)

    def each(size: Callable[[str, int, int], Fraction]) -> dict[str, Fraction]:
        return {
            axis: sum((size(call.op, call.payload_bytes, call.ranks) for call in calls), Fraction(0))
            for axis, calls in transfers.items()
        }

    return Sent(ring_bytes=each(ring_bytes), wire_bytes=each(partial(wire_bytes, backend=backend)))


def predicted_transfers(work: Planned, pp_rank: int = 0, *, device_type: str = "cpu") -> dict[str, list[Transfer]]:
    """Return {axis: what each rank of one pipeline rank calls} in a step of the native engine.

    Axes are named as by `CommLedger`: what all ranks reduce together is "world", or the one axis there is; where ZeRO
    divides over groups of data ranks, what passes within and between them is "dp_shard" and "dp_replicate". Where
    rows do not divide by dp, it is the rank that sends most. device_type decides what autocast lowers. An axis that
    recomputed blocks use is left out under schedules that split backward: there torch computes a block again for
    each of its layers, once a layer (torch.distributed.pipelining._backward, stage_backward_weight).
    """
    layout = work.layout
    if layout.world_size == 1:
        return {}
    mine = _held(work, pp_rank)
    stages = list(_stages(work, last=max(mine), device_type=device_type))
    world = layout.axes[0] if len(layout.axes) == 1 else "world"
    called: dict[str, list[Transfer]] = defaultdict(list)
    called[world].append(Transfer("all_reduce", layout.world_size, 2 * _weight_bytes(work)))  # loss and gradient norm
    for stage in (stages[i] for i in mine):
        for call in stage.calls:
            ranks = getattr(layout, call.axis)
            called[call.axis].append(Transfer(call.op, ranks, _times(call, work) * call.payload_bytes))
        if layout.dp > 1:
            for axis, transfer in _updating(stage, work):
                called[axis].append(transfer)
        if layout.tp > 1:
            called["tp"] += _aligning(stage, work)
        if layout.pp > 1:
            called["pp"] += [_over_boundaries(stage, work, pp_rank), _tied(stage, work)]
    calls = [call for i in mine for call in stages[i].calls if _recomputed(call, work)]
    unknown = {call.axis for call in calls} if splits_backward(work) else set()
    return {axis: transfers for axis, transfers in called.items() if axis not in unknown}


@dataclass
class _Call:
    """A collective of one module in each micro-batch."""

    axis: str
    op: str
    payload_bytes: int
    backward: bool = False
    block: int | None = None
    again: bool = False  # in a recomputed forward, which stops at the last tensor that backward needs


@dataclass
class _Stage:
    """What one pipeline stage (or the whole model) has to communicate about."""

    index: int
    part: nn.Module
    calls: list[_Call] = field(default_factory=list)
    received_bytes: int = 0  # in one micro-batch, from the stage before
    sent_bytes: int = 0  # to the next one


def _held(work: Planned, pp_rank: int) -> tuple[int, ...]:
    layout = work.layout
    return SCHEDULES[layout.schedule].stages_of(pp_rank, layout.pp) if layout.schedule else (0,)


def _weight_bytes(work: Planned) -> int:
    return weight_dtype(work.run.precision).itemsize


# --- a forward pass of each stage, on the meta device


def _stages(work: Planned, *, last: int, device_type: str) -> Iterator[_Stage]:
    """Yield the stages up to `last`, each run on what the one before returned."""
    precision = work.run.precision
    lower = precision in ("bf16", "fp16")
    inputs, _ = work.spec.example(work.model_config, work.division.micro_batch_size)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        hidden = tuple(in_dtype(torch.empty_like(x, device=device_type), weight_dtype(precision)) for x in inputs)
    for index in range(last + 1):
        part = cut_stage(work.new_model(), spec=work.spec, config=work.model_config, layout=work.layout, stage=index)
        stage = _Stage(index, part, received_bytes=_boundary(hidden, work))
        if lower and work.layout.zero >= 2:  # FSDP casts parameters and what enters
            part.to(DTYPES[precision])
            hidden = tuple(in_dtype(x, DTYPES[precision]) for x in hidden)
        autocast = torch.autocast(device_type, DTYPES[precision], enabled=lower and work.layout.zero < 2)
        with fake, _noted(stage, work), autocast:
            part.to_empty(device=device_type)
            tie(part, work.spec.tied)
            out = part(*hidden)
        hidden = tuple(in_dtype(x, weight_dtype(precision)) for x in (out if isinstance(out, tuple) else (out,)))
        stage.sent_bytes = _boundary(hidden, work)
        yield stage


def _boundary(hidden: tuple[Tensor, ...], work: Planned) -> int:
    """Return the bytes that cross between stages: a piece of the sequence under sequence parallelism."""
    return sum(x.nbytes for x in hidden) // (work.layout.tp if work.layout.sequence_parallel else 1)


@contextlib.contextmanager
def _noted(stage: _Stage, work: Planned) -> Iterator[None]:
    """Note the collectives of the modules that run inside."""

    running: list[int | None] = [None]  # the block

    def before(name: str, module: nn.Module, x: Tensor) -> None:
        running[0] = _block_of(name)
        stage.calls += _calls_before(name, module, x, work)

    def after(name: str, out: Tensor) -> None:
        stage.calls += _calls_after(name, out, work)

    def keep(tensor: Tensor) -> Tensor:
        for call in stage.calls:
            call.again |= call.block == running[0] and not call.backward
        return tensor

    hooks = []
    for name, module in stage.part.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, args, name=name: before(name, m, args[0])))
        hooks.append(module.register_forward_hook(lambda m, args, out, name=name: after(name, out)))
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _calls_before(name: str, module: nn.Module, x: Tensor, work: Planned) -> Iterator[_Call]:
    """Yield what a module communicates about its input."""
    style, sequence, block = _style(name, work), work.layout.sequence_parallel, _block_of(name)
    wide = 8 if x.dtype == torch.float64 else 4  # bytes of what losses and statistics are computed in
    if style in ("column", "vocab_loss") and sequence:
        yield _Call("tp", "all_gather", x.nbytes, block=block)
    if style == "column":  # each rank has a term of the gradient of x
        yield _Call("tp", "reduce_scatter" if sequence else "all_reduce", x.nbytes, backward=True, block=block)
    if style == "vocab_loss":
        # For each word: the largest logit; the sum of exponentials and the target's logit. Then the gradient of x,
        # which is made in forward (models.cross_entropy).
        words = x.numel() // x.shape[-1]
        yield _Call("tp", "all_reduce", (3 * words + x.numel()) * wide)
    if isinstance(module, Reducing) and module.axis == "dp" and work.layout.dp > 1:
        # For each channel two sums, and the count, in fp64; in backward two sums (models.norms).
        channels = x.shape[1] // (work.layout.tp if style == "channels" else 1)
        yield _Call("dp", "all_reduce", (2 * channels + 1) * 8, block=block)
        yield _Call("dp", "all_reduce", 2 * channels * wide, backward=True, block=block)


def _calls_after(name: str, out: Tensor, work: Planned) -> Iterator[_Call]:
    """Yield what a module communicates about its output."""
    style, sequence, block = _style(name, work), work.layout.sequence_parallel, _block_of(name)
    if style == "row":  # each rank has a term of the output
        yield _Call("tp", "reduce_scatter" if sequence else "all_reduce", out.nbytes, block=block)
    if style == "vocab_embedding":
        yield _Call("tp", "all_reduce", out.nbytes)
    if style in ("row", "scatter_sequence") and sequence:  # each rank has the gradient of its piece
        yield _Call("tp", "all_gather", out.nbytes, backward=True, block=block)


def _style(module: str, work: Planned) -> Style | None:
    plan = work.spec.tensor_plan(work.model_config) if work.layout.tp > 1 else {}
    return next((style for pattern, style in plan.items() if fnmatchcase(module, pattern)), None)


def _block_of(name: str) -> int | None:
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "blocks" and rest else None


# --- how often


def _times(call: _Call, work: Planned) -> int:
    """Return how often a collective runs in one step: once a micro-batch, and again where forward is recomputed."""
    return work.division.chunks * (2 if _recomputed(call, work) else 1)


def _recomputed(call: _Call, work: Planned) -> bool:
    every = work.run.checkpoint_every
    return bool(call.again and every and call.block is not None and call.block % every == 0)


def splits_backward(work: Planned) -> bool:
    """Return whether the schedule takes the gradients of weights in passes of their own."""
    layout = work.layout
    if layout.schedule is None:
        return False
    order = pass_order(layout.schedule, pp=layout.pp, micro_batches=work.division.chunks)
    return any(step.kind == "W" for steps in order for step in steps)


def _reductions(work: Planned) -> int:
    """Return how often FSDP gathers and reduces in one step: once a backward, once a flush of a pipeline."""
    return 1 if work.layout.pp > 1 and work.layout.schedule != "naive" else work.division.chunks


# --- parameters and gradients


def _local_shapes(stage: _Stage, work: Planned) -> dict[str, tuple[int, ...]]:
    """Return the shape of what a tensor rank holds of each parameter."""
    shapes = {}
    for name, parameter in stage.part.named_parameters():
        shape, style = list(parameter.shape), _style(name.rpartition(".")[0], work)
        dim = _SPLIT_DIM.get(style, len(shape)) if style else len(shape)
        if dim < len(shape):  # the bias beside a weight that is split by inputs stays whole
            shape[dim] //= work.layout.tp
        shapes[name] = tuple(shape)
    return shapes


def _updating(stage: _Stage, work: Planned) -> Iterator[tuple[str, Transfer]]:
    """Yield what brings gradients together and updated parameters to where they are needed: (axis, calls)."""
    layout, shapes = work.layout, _local_shapes(stage, work)
    if layout.zero >= 2:
        yield from _sharding(shapes, work)
        return
    gradients = sum(prod(shape) for shape in shapes.values())
    yield "dp", Transfer("all_reduce", layout.dp, gradients * _weight_bytes(work))
    if layout.zero == 1:
        rows = fsdp_padded_numel(shapes.values(), dp=layout.dp_shard)  # each rank has an equal share of the rows
        yield layout.shard_axis, Transfer("all_gather", layout.dp_shard, rows * _weight_bytes(work))


def _sharding(shapes: Mapping[str, tuple[int, ...]], work: Planned) -> Iterator[tuple[str, Transfer]]:
    """Yield what FSDP gathers in forward and backward, and what it reduces (ZeRO, section 7.2.2): (axis, calls).

    Between groups of data ranks it is the shards of the gradients, once a step where no pipeline flushes more often.
    """
    layout, times, ranks = work.layout, _reductions(work), work.layout.dp_shard
    for name, shape in shapes.items():
        padded = fsdp_padded_numel([shape], dp=ranks)
        # What is outside the blocks stays gathered from forward to backward, and so does all of a pipeline.
        gathers = 2 if layout.zero == 3 and layout.pp == 1 and _block_of(name) is not None else 1
        gathered = times * gathers * padded * DTYPES[work.run.precision].itemsize
        yield layout.shard_axis, Transfer("all_gather", ranks, gathered)
        yield layout.shard_axis, Transfer("reduce_scatter", ranks, times * padded * _weight_bytes(work))
        if layout.shard:
            reduced = (times if layout.pp > 1 else 1) * padded // ranks * _weight_bytes(work)
            yield DP_REPLICATE, Transfer("all_reduce", layout.dp_replicate, reduced)


def _aligning(stage: _Stage, work: Planned) -> Iterator[Transfer]:
    """Yield the sum over tp of gradients that each rank made from its piece of the sequence: those of the norms."""
    if not work.layout.sequence_parallel:
        return
    shapes = _local_shapes(stage, work)
    seen = [prod(shape) for name, shape in shapes.items() if _style(name.rpartition(".")[0], work) == "sequence"]
    sharded = work.layout.zero >= 2
    itemsize = DTYPES[work.run.precision].itemsize if sharded and work.layout.pp == 1 else _weight_bytes(work)
    times = _reductions(work) if sharded else 1
    yield Transfer("all_reduce", work.layout.tp, times * sum(seen) * itemsize)


# --- between stages


def _over_boundaries(stage: _Stage, work: Planned, pp_rank: int) -> Transfer:
    """Return an activation to the next stage and a gradient to the one before, for each micro-batch."""
    layout = work.layout
    assert layout.schedule is not None
    rank_of, sent = SCHEDULES[layout.schedule].rank_of, 0
    if stage.index > 0 and rank_of(stage.index - 1, layout.pp) != pp_rank:
        sent += stage.received_bytes
    if stage.index < layout.stages - 1 and rank_of(stage.index + 1, layout.pp) != pp_rank:
        sent += stage.sent_bytes
    return Transfer("send", layout.pp, work.division.chunks * sent)


def _tied(stage: _Stage, work: Planned) -> Transfer:
    """Return the exchange of gradients of tied parameters, where first and last stage lie on two ranks."""
    layout = work.layout
    assert layout.schedule is not None
    last = layout.stages - 1
    names = {0: list(work.spec.tied.values()), last: list(work.spec.tied)}.get(stage.index, [])
    if SCHEDULES[layout.schedule].rank_of(last, layout.pp) == 0:
        names = []
    shapes = _local_shapes(stage, work)
    share = layout.dp_shard if layout.zero >= 2 else 1
    numel = sum(fsdp_padded_numel([shapes[name]], dp=share) // share for name in names)
    return Transfer("send", layout.pp, numel * _weight_bytes(work))
