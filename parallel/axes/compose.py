"""Several axes at once: pipeline split, then tensor plan, then data or ZeRO over each part.

`compose` is the one way a model is split for native torch: every strategy is a layout, and axes of size one drop
out. The order matters (see the module of each axis): stages are cut while the model has no values, layers are
split before FSDP shards what is left of them, and values come last, so a rank only ever makes its own.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from parallel.axes import data as ddp
from parallel.axes import pipeline, tensor, zero
from parallel.axes.context import BuildContext
from parallel.axes.initialise import initialise, tie
from parallel.axes.optimizer import Piece, make_optimizer, make_pieces
from parallel.axes.precision import autocast_forward
from parallel.axes.recompute import checkpoint_blocks
from parallel.data.dataset import Batch


@dataclass
class Composed:
    """What the axes of a layout make of a model on one rank: the parts it holds, and how a step runs over them.

    pieces: what the optimizer updates. share: what brings updated pieces to the other ranks, if anything.
    forward_backward(batch, loss_scale): accumulate the gradient of the mean loss of this rank's rows; return that
    mean on ranks that hold the loss, zero on others. finish: what completes the gradients, in order.
    duplicates: ids of parameters that another stage counts in the gradient norm.
    """

    parts: list[nn.Module]
    pieces: list[Piece]
    optimizer: torch.optim.Optimizer
    forward_backward: Callable[[Batch, float], Tensor]
    finish: list[Callable[[], None]] = field(default_factory=list)
    share: Callable[[], None] | None = None
    duplicates: set[int] = field(default_factory=set)


def compose(context: BuildContext) -> Composed:
    """Split a model as its layout says, and give this rank's parts their values."""
    layout, mesh = context.layout, context.mesh
    parts = pipeline.make_stages(context) if layout.pp > 1 else {0: context.new_model()}
    for part in parts.values():
        fill_part(part, context)
    finish: list[Callable[[], None]] = []
    modules = list(parts.values())
    wrapped = layout.dp > 1 and layout.zero < 2 and layout.axes == ("dp",)
    if wrapped:
        forward = ddp.replicate(modules[0], mesh=mesh)
    else:
        forward = modules[0]
    if layout.tp > 1 and layout.zero < 2:
        finish.append(lambda: tensor.align_gradients(modules, mesh=mesh))
    duplicates: set[int] = set()
    if layout.pp > 1 and context.spec.tied:
        tied = pipeline.TiedGradients(parts, context)
        finish.append(tied)
        duplicates = tied.duplicates
    if layout.dp > 1 and layout.zero < 2 and not wrapped:
        finish.append(lambda: ddp.average_gradients(modules, mesh=mesh))
    run_chunks = pipeline.PipelineSchedule(parts, context) if layout.pp > 1 else Accumulate(forward, context)
    parameters = [p for module in modules for p in module.parameters()]
    split = layout.zero == 1
    pieces = make_pieces(parameters, rank=mesh.rank(layout.shard_axis), ranks=layout.dp_shard if split else 1)
    return Composed(
        modules,
        pieces,
        make_optimizer(pieces, context.run),
        run_chunks,
        finish,
        zero.ShareUpdates(pieces, mesh=mesh) if split and layout.dp > 1 else None,
        duplicates,
    )


def fill_part(part: nn.Module, context: BuildContext) -> None:
    """Split, wrap and initialise one part, in place."""
    layout, mesh, run, tied = context.layout, context.mesh, context.run, context.spec.tied
    if layout.tp > 1:
        tensor.split_layers(part, context.spec.tensor_plan(context.model_config), mesh=mesh)
        tie(part, tied)
    if layout.dp > 1:
        ddp.connect(part, mesh=mesh)
    checkpoint_blocks(part, run.checkpoint_every)
    if run.compile != "none":
        for block in part.blocks.values():
            block.compile(mode=run.compile)
    if layout.zero >= 2:
        zero.shard(part, mesh=mesh, precision=run.precision)
    elif run.precision in ("bf16", "fp16"):
        autocast_forward(part, device_type=context.device.type, precision=run.precision)
    part.to_empty(device=context.device)
    tie(part, tied)
    initialise(part, spec=context.spec, config=context.model_config, seed=run.seed)
    if layout.zero >= 2:
        zero.settle(part)
    part.train()


class Accumulate:
    """Forward and backward of each micro-batch in turn; gradients are averaged over ranks after the last one.

    FSDP reduces after every micro-batch instead: keeping whole gradients would undo what it is for. Between groups of
    data ranks (`shardN`) it too waits for the last one.
    """

    def __init__(self, model: nn.Module, context: BuildContext) -> None:
        self.model = model
        self.chunks = context.division.chunks
        self.groups = context.layout.shard is not None

    def __call__(self, batch: Batch, loss_scale: float) -> Tensor:
        """Return the mean loss of this rank's rows."""
        total: Tensor | float = 0.0
        for i, chunk in enumerate(batch.split(self.chunks)):
            last = i == self.chunks - 1
            if self.groups and isinstance(self.model, FSDPModule):
                self.model.set_requires_all_reduce(last)
            with self._unsynchronised(last=last):
                loss = self.model(*chunk.inputs, targets=chunk.targets)
                total = total + loss.detach()
                weight = loss_scale / self.chunks
                (loss if weight == 1.0 else loss * weight).backward()
        return total / self.chunks

    def _unsynchronised(self, *, last: bool) -> contextlib.AbstractContextManager:
        no_sync = getattr(self.model, "no_sync", None)
        return contextlib.nullcontext() if last or no_sync is None else no_sync()
