"""Several axes at once: each is asked in turn what it does to the model and to a step.

`compose` is the one way a model is split for native torch: every strategy is a layout, and axes that a layout does not
use drop out. The order matters: stages are cut while the model is on the meta device, layers are split before FSDP
shards what is left of them, and values come last, so a rank only ever makes its own.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from paralab.axes import finishing_order, used
from paralab.axes.axis import Finish, Updates
from paralab.axes.blocks import blocks_of
from paralab.axes.context import BuildContext
from paralab.axes.initialise import initialise, tie
from paralab.axes.optimizer import Piece, make_optimizer, make_pieces
from paralab.axes.precision import autocast_forward
from paralab.axes.recompute import offload_activations, recompute
from paralab.data.dataset import Batch
from paralab.errors import LayoutError
from paralab.models.declared import check_loss
from paralab.models.found import move_plain_tensors

T = TypeVar("T")


@dataclass
class Composed:
    """What the axes of a layout make of a model on one rank: the parts it holds, and how a step runs over them.

    pieces: what the optimizer updates. share: what follows an update, such as bringing pieces to the other ranks.
    states: what `share` keeps from step to step, of any shape. refresh, agreed: see `Updates`.
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
    states: Sequence[Tensor] = ()
    refresh: Callable[[], None] | None = None
    agreed: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def compose(context: BuildContext) -> Composed:
    """Split a model as its layout says, and give this rank's parts their values.

    Raises: LayoutError where two axes bring what a step has once.
    """
    axes = used(context.layout)
    parts = _only(axis.stages(context) for axis in axes) or {0: context.new_model()}
    for part in parts.values():
        build_part(part, context)
    modules = list(parts.values())
    with context.mesh.tensors():
        forward = _only(axis.forward(modules[0], context) for axis in axes) or modules[0]
    finish = list(_finishes(parts, context))
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    updates = _only(axis.updates(named, context) for axis in axes) or Updates(make_pieces(parameters), None)
    pieces, own = updates.pieces, context.own
    if own is None:
        optimizer = make_optimizer(pieces, context.run)
    else:
        names = {id(p): name for module in modules for name, p in module.named_parameters()}
        optimizer, pieces = own.optimizer(pieces, names)
    return Composed(
        modules,
        pieces,
        optimizer,
        _only(axis.schedule(parts, context) for axis in axes) or Accumulate(forward, context),
        [*finish],
        updates.share,
        {parameter for done in finish for parameter in done.duplicates},
        updates.states,
        updates.refresh,
        updates.agreed,
    )


def _finishes(parts: Mapping[int, nn.Module], context: BuildContext) -> Iterator[Finish]:
    for axis in finishing_order(context.layout):
        if (done := axis.after_backward(parts, context)) is not None:
            done.axis = axis.name
            yield done


def _only(answers: Iterable[T | None]) -> T | None:
    """Return the answer of the axis that gives one. Raises: LayoutError where two do, since one would be dropped."""
    given = [answer for answer in answers if answer is not None]
    if len(given) > 1:
        raise LayoutError(
            f"two axes of this layout each bring a {type(given[0]).__name__} of their own, and a step has one: "
            "use a layout with one of them"
        )
    return given[0] if given else None


def build_part(part: nn.Module, context: BuildContext) -> None:
    """Split and wrap one part, in place, and give it its values.

    The order: what the axes split, activation checkpointing, compile, what they wrap (FSDP), values.
    """
    axes, run = used(context.layout), context.run
    for axis in reversed(axes):  # innermost first
        axis.split(part, context)
    recompute(part, run.checkpointing, random=context.own is not None)
    if run.checkpointing == "offload":
        offload_activations(part, pinned=context.device.type == "cuda")
    if run.compile != "none":
        for block in blocks_of(part).values():
            block.compile(mode=run.compile)
    for axis in axes:
        axis.wrap(part, context)
    if run.precision in ("bf16", "fp16") and not any(axis.casts(context.layout) for axis in axes):
        autocast_forward(part, device_type=context.device.type, precision=run.precision)
    with context.mesh.tensors():
        part.to_empty(device=_only(axis.home(context) for axis in axes) or context.device)
        tie(part, context.tied)
        if context.mesh.is_pretended:
            move_plain_tensors(part, context.device)
        elif context.own is None:
            initialise(part, spec=context.spec, config=context.model_config, seed=run.seed)
        else:
            context.own.initialise(part, context.mesh)
        for axis in axes:
            axis.finalise(part, context)
    part.train()


class Accumulate:
    """Forward and backward of each micro-batch in turn. What an axis may put off, it does after the last one."""

    def __init__(self, model: nn.Module, context: BuildContext) -> None:
        self.model = model
        self.chunks, self.axes = context.division.chunks, used(context.layout)
        self.name = context.spec.name

    def __call__(self, batch: Batch, loss_scale: float) -> Tensor:
        """Return the mean loss () of this rank's rows, whose gradient times `loss_scale` is in the parameters then."""
        total = torch.zeros((), device=batch.targets.device)
        for i, chunk in enumerate(batch.split(self.chunks)):
            with contextlib.ExitStack() as around:
                for axis in self.axes:
                    around.enter_context(axis.micro_batch(self.model, last=i == self.chunks - 1))
                loss = check_loss(self.model(*chunk.inputs, targets=chunk.given), self.name)
                total = total + loss.detach()
                weight = loss_scale / self.chunks
                (loss if weight == 1.0 else loss * weight).backward()
        return total / self.chunks
