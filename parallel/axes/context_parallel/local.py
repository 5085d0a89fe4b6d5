"""Attention of some queries over some keys on one device, in the two halves that a ring puts together.

Forward gives the log-sum-exp beside the output; backward takes those of all keys, and gives the gradients that belong
to some of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.models.spec import at_least_fp32


@dataclass
class Part:
    """Attention over some keys. out: (batch, heads, seq, width of v). lse: (batch, heads, seq), fp32 or wider."""

    out: Tensor
    lse: Tensor

    def widened(self) -> "Part":
        """Return the same with an output in fp32 or wider, to which others can be added."""
        return Part(at_least_fp32(self.out), self.lse)

    def merge(self, other: "Part", queries: slice) -> "Part":
        """Return this with attention over further keys added, in place; the other has some of the queries."""
        out, lse = self.out[:, :, queries], self.lse[:, :, queries]
        both = torch.logaddexp(lse, other.lse)
        out *= (lse - both).exp()[..., None]
        out.addcmul_(at_least_fp32(other.out), (other.lse - both).exp()[..., None])
        lse.copy_(both)
        return self


def forward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Part:
    """Return the attention of q (batch, heads, seq, head_dim) over k and v, with as many heads or fewer.

    Values may have another width than keys. causal: queries and keys are the same positions, and none looks ahead.
    """
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    if _has_kernel(q):
        scale = q.shape[-1] ** -0.5
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*_even(q, k, v), 0.0, causal, scale=scale)
        return Part(out[..., : v.shape[-1]], lse)
    scores = _scores(q, k, causal)
    lse = scores.logsumexp(-1)
    return Part((scores - lse[..., None]).exp().to(q.dtype) @ v, lse)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, in their shapes. grad, out, lse: of these queries, over all keys there are.

    Dao et al. 2022 (FlashAttention), appendix B.4.
    """
    heads = k.shape[1]
    k, v = (_repeated(x, q.shape[1]) for x in (k, v))
    if _has_kernel(q):
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *_even(grad, q, k, v, out), lse.contiguous(), 0.0, causal, scale=q.shape[-1] ** -0.5
        )
        grad_q, grad_k, grad_v = (x[..., : of.shape[-1]] for x, of in zip(gradients, (q, k, v), strict=True))
    else:
        weights = (_scores(q, k, causal) - lse[..., None]).exp()
        wide = at_least_fp32(grad)
        inner = wide @ at_least_fp32(v).mT - (wide * out).sum(-1, keepdim=True)
        products = (weights * inner).to(q.dtype) * q.shape[-1] ** -0.5
        grad_q, grad_k, grad_v = products @ k, products.mT @ q, weights.to(q.dtype).mT @ grad
    return grad_q, _summed(grad_k, heads), _summed(grad_v, heads)


def _even(*tensors: Tensor) -> list[Tensor]:
    """Return tensors (..., width) with zeros after the narrower ones: the kernel takes keys and values of one width."""
    width = max(x.shape[-1] for x in tensors)
    return [x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in tensors]


def _has_kernel(q: Tensor) -> bool:
    """Return whether torch has one for queries of any shape that gives, and takes, the log-sum-exp as it is here."""
    return q.device.type == "cpu"


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    """Return the scaled products (batch, heads, queries, keys) in fp32 or wider, -inf for what lies ahead."""
    scores = at_least_fp32(q @ k.mT) * q.shape[-1] ** -0.5
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    return scores


def _repeated(x: Tensor, heads: int) -> Tensor:
    """Return keys or values (batch, kv_heads, seq, head_dim) once for each head of queries that shares them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _summed(grad: Tensor, heads: int) -> Tensor:
    """Return the gradient of what was repeated to (batch, heads of queries, seq, head_dim), in fp32 or wider."""
    return grad if grad.shape[1] == heads else at_least_fp32(grad).unflatten(1, (heads, -1)).sum(2)
