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

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.spec import Reducing, at_least_fp32, keep

CHUNK_BYTES = 256 << 20  # of logits; benchmarks/NOTES.md says what other sizes gave


class LinearCrossEntropy(nn.Module, Reducing):
    """Project to the vocabulary and, given targets, return the mean cross entropy.

    `weight` is (padded_vocab, hidden). Rows from `vocab_size` on are padding that makes the rows divide over
    ranks: they never enter the softmax and their gradient is zero. `row_offset` is the first row that this
    rank holds when the vocabulary is split.
    """

    axis = "tp"

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
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _LinearCrossEntropy.apply(
                x.flatten(0, -2), weight, targets.flatten(), rows, self.row_offset, dtype, self.all_reduce
            )


def local(parameter: Tensor) -> Tensor:
    """Return the part of a sharded parameter that this rank holds, and a plain one as it is."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,  # (n, hidden)
        weight: Tensor,  # (padded rows, hidden)
        targets: Tensor,  # (n,)
        rows: int,
        offset: int,
        dtype: torch.dtype,
        all_reduce: Callable[[Tensor, str], Tensor],
    ) -> Tensor:
        with_grad = any(ctx.needs_input_grad)
        n = x.shape[0]
        words, x_cast = weight[:rows].to(dtype), x.to(dtype)
        loss = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=x.device)
        grad_x = torch.empty_like(x_cast) if with_grad else None
        grad_weight = None
        step = max(1, CHUNK_BYTES // (dtype.itemsize * max(rows, 1)))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            logits = x_cast[part] @ words.T  # (chunk, rows)
            if all_reduce is keep:
                chunk_loss = _softmax_loss_(logits, targets[part])
            else:
                logits, chunk_loss = _split_softmax_loss(logits, targets[part] - offset, all_reduce)
            loss += chunk_loss
            if with_grad:  # logits are now their own gradient, times n
                torch.mm(logits, words, out=grad_x[part])
                grad_weight = _add_product(grad_weight, logits.T, x_cast[part])
        if with_grad:
            if all_reduce is not keep:
                grad_x = all_reduce(at_least_fp32(grad_x), "sum")  # every rank saw its own words only
            full = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
            torch.mul(grad_weight, 1 / n, out=full[:rows])
            ctx.save_for_backward((grad_x / n).to(x.dtype), full)
        return loss / n

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_x, grad_weight = ctx.saved_tensors
        # Not in place: a zero-bubble schedule comes here twice, once for the input and once for the weight.
        if grad_loss.is_cuda or grad_loss.item() != 1.0:
            grad_x = grad_x * grad_loss if ctx.needs_input_grad[0] else None
            grad_weight = grad_weight * grad_loss if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None, None, None, None, None


def _softmax_loss_(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits (chunk, rows) into the gradient of the summed loss, in place, and return that loss in fp32.

    softmax works in fp32 inside whatever the dtype. The normaliser is read back from the largest entry, whose
    probability cannot underflow: log sum exp = largest logit - log(largest probability).
    """
    index = targets[:, None]
    largest = logits.max(dim=-1, keepdim=True)
    target_logit = at_least_fp32(logits.gather(1, index))
    torch.softmax(logits, dim=-1, out=logits)
    log_sum = at_least_fp32(largest.values) - at_least_fp32(logits.gather(1, largest.indices)).log()
    logits.scatter_add_(1, index, logits.new_full((), -1.0).expand_as(index))
    return (log_sum - target_logit).sum()


def _split_softmax_loss(
    logits: Tensor, targets: Tensor, all_reduce: Callable[[Tensor, str], Tensor]
) -> tuple[Tensor, Tensor]:
    """Do the same over a vocabulary split by ranks. Targets count from this rank's first row."""
    dtype, (n, rows) = logits.dtype, logits.shape
    logits = at_least_fp32(logits)
    here = (targets >= 0) & (targets < rows)
    index = targets.clamp(0, max(rows - 1, 0))[:, None]
    largest = logits.amax(dim=-1) if rows else logits.new_full((n,), float("-inf"))
    logits.sub_(all_reduce(largest, "max")[:, None])
    target_logit = logits.gather(1, index)[:, 0].masked_fill(~here, 0.0) if rows else logits.new_zeros(n)
    sum_exp, target_logit = all_reduce(torch.stack([logits.exp_().sum(dim=-1), target_logit]), "sum")
    logits.div_(sum_exp[:, None])
    if rows:
        logits.scatter_add_(1, index, -here.to(logits.dtype)[:, None])
    return logits.to(dtype), (sum_exp.log() - target_logit).sum()


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return total + a @ b, the running total in fp32 when there is more than one term."""
    if total is None:
        return a @ b
    return (
        total.addmm_(a, b)
        if total.dtype == a.dtype in (torch.float32, torch.float64)
        else at_least_fp32(total).add_(a @ b)
    )
