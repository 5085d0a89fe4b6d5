"""The last layer of a language model and its loss in one function, without ever holding all the logits.

For 2,048 tokens and 50,257 words the logits are 412 MB in fp32, and a plain `cross_entropy(linear(x))` holds
them three times over. Here the rows are taken a chunk at a time: logits, softmax, gradients of input and
weight, then the chunk's buffer is used again. The gradients are made in forward, while the logits are hot, and
only scaled in backward (the idea of Liger Kernel's fused linear cross entropy, Hsu et al. 2024,
arXiv:2410.10989).

Over a split vocabulary each rank holds some rows of the weight; two small reductions per chunk (the largest
logit; the sum of exponentials with the target's logit) give the exact loss (Megatron-LM, Shoeybi et al. 2019,
section 3).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from paralab.models.spec import Reducing, at_least_fp32, keep
from paralab.models.values import value_at_hand
from paralab.models.vocabulary import CHUNK_BYTES


class LinearCrossEntropy(nn.Module, Reducing):
    """Project to the vocabulary and, given targets, return the mean cross entropy.

    `weight` is (padded_vocab, hidden). Rows from `vocab_size` on are padding that makes the rows divide over
    ranks: they never enter the softmax and their gradient is zero. `row_offset` is the first row that this
    rank holds when the vocabulary is split.
    """

    axis = "tp"
    weight: Tensor

    def __init__(self, *, hidden: int, vocab_size: int, padded_vocab: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.row_offset = 0
        self.weight = nn.Parameter(torch.empty(padded_vocab, hidden))

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits (..., vocab_size), or with targets (...) int64 the mean loss, fp32, shape ().

        Over a split vocabulary only the loss is defined, and `weight` may be given as the local rows.
        """
        weight = local(self.weight)
        rows = min(max(self.vocab_size - self.row_offset, 0), weight.shape[0])
        if targets is None:
            return nn.functional.linear(x, weight[:rows])
        device_type = "cpu" if x.is_meta else x.device.type  # there is no autocast on the meta device
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
        with torch.autocast(device_type, enabled=False):
            return _LinearCrossEntropy.apply(
                x.flatten(0, -2), weight, targets.flatten(), rows, self.row_offset, dtype, self.all_reduce
            )


def local(parameter: Tensor) -> Tensor:
    """Return the part of a sharded parameter that this rank holds, and a plain one as it is.

    A vocabulary (padded_vocab, hidden) split over tp ranks gives (padded_vocab / tp, hidden).
    """
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (n, hidden)
        weight: Tensor,  # (padded rows, hidden)
        targets: Tensor,  # (n,)
        rows: int,
        offset: int,
        dtype: torch.dtype,
        all_reduce: Callable[[Tensor, str], Tensor],
    ) -> Tensor:
        n, padded = x.shape[0], weight.shape[0]
        words, x_cast = weight.to(dtype), x.to(dtype)
        loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=x.device)
        grad_x = torch.empty_like(x_cast) if any(ctx.needs_input_grad) else None
        grad_weight: Tensor | None = None
        step = _chunk_rows(dtype.itemsize * padded)
        buffer = x_cast.new_empty(min(n, step), padded)
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            logits = buffer[: part.stop - start]  # (chunk, padded rows)
            project = partial(_project_, logits, x_cast[part], words, rows)
            if all_reduce is keep:
                loss += _softmax_loss(logits, targets[part], project)
            else:
                project()
                logits, chunk_loss = _split_softmax_loss(logits, targets[part] - offset, all_reduce)
                loss += chunk_loss
            if grad_x is not None:  # logits are now their own gradient, times n
                torch.mm(logits, words, out=grad_x[part])
                grad_weight = _add_product(grad_weight, logits, x_cast[part])
        if grad_x is not None and grad_weight is not None:
            if all_reduce is not keep:
                grad_x = all_reduce(at_least_fp32(grad_x), "sum")  # every rank saw its own words only
            grad_weight = grad_weight.to(weight.dtype, memory_format=torch.contiguous_format)
            ctx.save_for_backward((grad_x / n).to(x.dtype), grad_weight.mul_(1 / n))
        return loss / n

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        # Not in place: a zero-bubble schedule comes here twice, once for the input and once for the weight.
        if value_at_hand(grad_loss) != 1.0:
            grad_x = grad_x * grad_loss if ctx.needs_input_grad[0] else None
            grad_weight = grad_weight * grad_loss if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None, None, None, None


def _chunk_rows(row_bytes: int) -> int:
    """Return the rows taken at a time; the same on all ranks, which hold equally many words, padding included."""
    rows = max(1, CHUNK_BYTES // row_bytes)
    return rows - rows % 64 if rows > 64 else rows  # other numbers make bf16 products up to twice as slow


def _softmax_loss(logits: Tensor, targets: Tensor, project: Callable[[], None]) -> Tensor:
    """Fill logits by `project`, turn them into the gradient of the summed loss, in place; return that loss in fp32.

    Looking for the largest logit takes longer than the softmax, and the target's does as well unless its probability
    underflows. A CPU looks whether it did; on an accelerator looking would wait for the device.
    """
    project()
    if logits.device.type == "cpu":
        losses = _softmax_loss_(logits, targets, anchor=targets)
        largest = value_at_hand(losses.amax())
        if largest is None or largest < -math.log(torch.finfo(logits.dtype).tiny):
            return losses.sum()
        project()
    return _softmax_loss_(logits, targets, anchor=logits.argmax(dim=-1)).sum()


def _softmax_loss_(logits: Tensor, targets: Tensor, *, anchor: Tensor) -> Tensor:
    """Turn logits (chunk, rows) into the gradient of the summed loss, in place; return the losses (chunk,) in fp32.

    The normaliser is read back from one entry of each row, the anchor (chunk,): log sum exp = logit -
    log(probability) for every entry. softmax works in fp32 inside whatever the dtype.
    """
    rows = torch.arange(len(targets), device=targets.device)
    ahead = at_least_fp32(logits[rows, anchor]) - at_least_fp32(logits[rows, targets])
    torch.softmax(logits, dim=-1, out=logits)
    losses = ahead - at_least_fp32(logits[rows, anchor]).log()
    logits[rows, targets] -= 1  # scatter_add_ would copy all of a bf16 tensor
    return losses


def _split_softmax_loss(
    logits: Tensor, targets: Tensor, all_reduce: Callable[[Tensor, str], Tensor]
) -> tuple[Tensor, Tensor]:
    """Do the same over a vocabulary split by ranks. Targets count from this rank's first row."""
    dtype = logits.dtype
    logits = at_least_fp32(logits)
    rows = torch.arange(len(targets), device=targets.device)
    here = (targets >= 0) & (targets < logits.shape[1])
    index = targets.clamp(0, logits.shape[1] - 1)
    logits.sub_(all_reduce(logits.amax(dim=-1), "max")[:, None])
    target_logit = logits[rows, index].masked_fill(~here, 0.0)
    sum_exp, target_logit = all_reduce(torch.stack([logits.exp_().sum(dim=-1), target_logit]), "sum")
    logits.div_(sum_exp[:, None])
    logits[rows, index] -= here.to(logits.dtype)
    return logits.to(dtype), (sum_exp.log() - target_logit).sum()


def _project_(logits: Tensor, x: Tensor, words: Tensor, rows: int) -> None:
    """Fill logits (chunk, padded rows) of x (chunk, hidden), -inf for padding.

    Padding takes part because rows that begin at multiples of 64 make faster products.
    """
    torch.mm(x, words.T, out=logits)
    logits[:, rows:] = float("-inf")


def _add_product(total: Tensor | None, logits: Tensor, x: Tensor) -> Tensor:
    """Return total + logits.T @ x, the running total in fp32 when there is more than one term."""
    if logits.dtype in (torch.float32, torch.float64):
        return logits.T @ x if total is None else total.addmm_(logits.T, x)
    product = (x.T.contiguous() @ logits).T  # on a CPU 1.6 times as fast as logits.T @ x
    return product if total is None else at_least_fp32(total).add_(product)
