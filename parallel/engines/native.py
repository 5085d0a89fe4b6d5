"""The engine on plain torch: forward and backward, finish the gradients, clip, update.

The axes of a layout hand it the parts, the optimizer and the callables (`paralab.axes.compose`); it never asks which
layout it is.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from paralab.axes import eight_bits, used
from paralab.axes.compose import Composed, compose
from paralab.axes.context import BuildContext
from paralab.axes.initialise import local
from paralab.axes.optimizer import learning_rate, set_learning_rate
from paralab.axes.pipeline.schedule import PipelineSchedule
from paralab.axes.precision import in_dtype, weight_dtype
from paralab.data.dataset import Batch
from paralab.engines.engine import LossScale, ResumableEngine, StepResult
from paralab.engines.state import Chunks, Shapes, model_chunks, new_optimizer_chunks, optimizer_chunks
from paralab.models.values import value_at_hand
from paralab.processes.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


def build(context: BuildContext) -> "NativeEngine":
    """Build the engine of a layout on this rank."""
    return NativeEngine(**vars(compose(context)), context=context)


class Watcher(Protocol):
    """What looks at parameters and gradients within a step."""

    def before_update(self) -> None:
        """Look at gradients that are whole, and not clipped yet."""

    def after_update(self) -> None:
        """Look at parameters that are updated, on every rank that holds them."""


@dataclass
class NativeEngine(Composed, ResumableEngine):
    """One optimizer step over the parts of a model that this rank holds."""

    context: BuildContext = field(kw_only=True)
    steps_done: int = 0
    watched_by: Watcher | None = None  # of single steps
    rounded: tuple[int, int] = (0, 0)  # blocks of 8-bit moments that a checkpoint had otherwise, and all that it gave

    def __post_init__(self) -> None:
        self.dtype = weight_dtype(self.context.run.precision)
        self.optimizers = [self.optimizer]
        mesh = self.context.mesh  # which does not change, and neither does where parameters lie
        self.loss_copies = prod(axis.loss_copies(mesh.layout) for axis in used(mesh.layout))
        self.copies = {id(piece.parameter): copies(piece.parameter, mesh) for piece in self.pieces}
        self.loss_scale = LossScale(enabled=self.context.run.precision == "fp16")

    def step(self, batch: Batch) -> StepResult:
        if self.dtype != torch.float32:
            batch = batch.each(lambda x: in_dtype(x, self.dtype))
        if self.context.run.cuda_graphs and self.context.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs made is not needed any more
        with own.random(self.steps_done, self.context.mesh) if (own := self.context.own) else contextlib.nullcontext():
            loss = self.forward_backward(batch, self.loss_scale.value)
        for finish in self.finish:
            finish()
        grads = [piece.of(piece.parameter.grad) for piece in self.pieces if piece.parameter.grad is not None]
        loss, grad_norm = self._over_ranks(loss)
        if self.watched_by is not None:
            self.watched_by.before_update()
        if self._clip(grads, grad_norm):
            self._update()
        if self.watched_by is not None:
            self.watched_by.after_update()
        self._zero_grad()
        self.steps_done += 1
        return StepResult(loss, grad_norm)

    @torch.no_grad()
    def begin_states(self) -> None:
        """Have the optimizer make its states, without a step. Changes parameters: of use where none has values."""
        for piece in self.pieces:
            piece.updated.grad = torch.empty_like(piece.updated)
        self.optimizer.step()
        self._zero_grad()

    @property
    def stages(self) -> "list[PipelineStage]":
        return self.forward_backward.stages if isinstance(self.forward_backward, PipelineSchedule) else []

    def held(self) -> Mapping[str, Iterable[Tensor]]:
        """Return what follows an update keeps from step to step, of the shapes of parameters."""
        return {"optimizer": self.states}

    def state(self) -> Chunks:
        return model_chunks(self) | optimizer_chunks(self)

    def set_values(self, value_of: Callable[[str], Tensor]) -> None:
        """Give parameters and buffers the tensors, of whole shapes, that are their names'. Collective."""
        super().set_values(value_of)
        self._refresh()

    def take_state(self, chunks: Chunks, saved: Shapes) -> None:
        """Take note that parameters were read, and put moments into 8 bits where the optimizer keeps them so."""
        self._refresh()
        if self.context.run.optimizer == eight_bits.NAME and self.context.own is None:
            self.rounded = eight_bits.pack_states(self.optimizer.state.values(), self.context.device)

    def _refresh(self) -> None:
        if self.refresh is not None:
            self.refresh()

    def new_state(self, saved: Shapes) -> Chunks:
        return model_chunks(self) | new_optimizer_chunks(self, saved)

    def _over_ranks(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of the global batch and the gradient norm over all parameters, in one small all-reduce.

        Ranks that hold the same value each give an equal share of it, so a plain sum over all ranks is right.
        """
        mesh = self.context.mesh
        totals = torch.stack([loss.to(self.dtype) / self.loss_copies, self._squared_norm_share()])
        if mesh.world is not None:
            dist.all_reduce(totals, group=mesh.world)
        return totals[0], totals[1].sqrt() / self.loss_scale.value

    def _squared_norm_share(self) -> Tensor:
        mesh = self.context.mesh
        by_copies: dict[int, list[Tensor]] = {}
        for p in (piece.parameter for piece in self.pieces):
            if p.grad is not None and id(p) not in self.duplicates:
                by_copies.setdefault(self.copies[id(p)], []).append(local(p.grad))
        total = torch.zeros((), dtype=self.dtype, device=mesh.device)
        for n_copies, grads in by_copies.items():
            norms = torch.stack(torch._foreach_norm([row_norms(grad) for grad in grads], dtype=self.dtype))
            total += norms.square().sum().to(total.device) / n_copies
        return total

    def _clip(self, grads: list[Tensor], grad_norm: Tensor) -> bool:
        """Scale the gradients to the clipping norm. Return False when the step must be skipped (fp16 overflow)."""
        limit, scale = self.context.run.clip_norm, self.loss_scale
        if scale.enabled:
            finite = _is_finite(grad_norm)
            scale_was = scale.value
            scale.update(finite=finite)
            if not finite:
                return False
            _scale(grads, 1.0 / scale_was)
        norm = value_at_hand(grad_norm)
        if limit is None or (norm is not None and norm <= limit):
            return True
        _scale(grads, torch.clamp(limit / (grad_norm + 1e-6), max=1.0))
        return True

    def _update(self) -> None:
        for piece in self.pieces:
            if piece.parameter.grad is not None and piece.updated is not piece.parameter:
                piece.updated.grad = piece.of(piece.parameter.grad).to(piece.updated.device)
        if self.context.own is None:  # else the program says how fast to learn
            set_learning_rate(self.optimizer, learning_rate(self.context.run, self.steps_done))
            self.optimizer.step()
        else:
            self.context.own.update(self.optimizer)
        if self.share is not None:
            self.share()
        if self.context.own is not None:
            self.context.own.after_update()

    def _zero_grad(self) -> None:
        for piece in self.pieces:
            piece.parameter.grad = piece.updated.grad = None


def _is_finite(norm: Tensor) -> bool:
    """Return whether a norm () is a number; one of a dry run is."""
    return isinstance(norm, FakeTensor) or bool(norm.isfinite())


def _scale(grads: list[Tensor], factor: Tensor | float) -> None:
    """Multiply gradients, of any shapes and in place, by a number (). Offloaded ones lie in host memory."""
    for device in {grad.device for grad in grads}:
        number = factor.to(device) if isinstance(factor, Tensor) else factor
        torch._foreach_mul_([grad for grad in grads if grad.device == device], number)


_ROW = 4096


def row_norms(grad: Tensor) -> Tensor:
    """Return a vector with the norm of a large CPU tensor of any shape: the norms of its rows of 4,096 elements.

    torch adds squares in fp32 one after another on a CPU; for 19 million elements that is wrong by 8e-4, in rows
    by 2e-8, and rows are faster.
    """
    if grad.device.type != "cpu" or grad.numel() <= 8 * _ROW:
        return grad
    flat = grad.reshape(-1)
    whole = flat.numel() // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=-1)
    return torch.cat([rows, flat[whole:]])


def copies(parameter: Tensor, mesh: Mesh) -> int:
    """Return on how many ranks the same piece of a parameter (of any shape) lies."""
    return prod(axis.copies(parameter, mesh) for axis in used(mesh.layout))
