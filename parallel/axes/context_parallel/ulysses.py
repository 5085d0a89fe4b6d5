"""Attention by heads: every rank trades its positions of most heads for all positions of some (Jacobs et al. 2023).

One all-to-all brings queries, keys and values to the rank of their heads, another brings back what attention made of
them; backward is the same the other way round.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class Ulysses:
    """Attention over the positions of all ranks of a group. causal: whether none looks ahead."""

    def __init__(self, group: dist.ProcessGroup, *, causal: bool) -> None:
        self.group, self.causal, self.ranks = group, causal, group.size()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take q (batch, heads, seq / ranks, head_dim), k and v with as many heads or fewer; return q's heads of v."""
        sent = [x.unflatten(1, (self.ranks, -1)).permute(1, 0, 3, 2, 4) for x in (q, k, v)]
        # (ranks, batch, seq / ranks, heads / ranks, width) each -> (ranks, batch, seq / ranks, elements of all three)
        packed = torch.cat([x.flatten(3) for x in sent], dim=3)
        here = _Exchange.apply(packed, self.group)  # by the rank whose positions they are
        parts = here.transpose(0, 1).flatten(1, 2).split([x.shape[3] * x.shape[4] for x in sent], dim=2)
        pairs = zip(parts, sent, strict=True)
        q, k, v = (part.unflatten(2, x.shape[3:]).transpose(1, 2) for part, x in pairs)  # (batch, heads, seq, width)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=q.shape[1] > k.shape[1])
        back = y.unflatten(2, (self.ranks, -1)).permute(2, 0, 1, 3, 4)
        heads = _Exchange.apply(back, self.group)  # (ranks, batch, heads / ranks, seq / ranks, head_dim)
        return heads.transpose(0, 1).flatten(1, 2)


class _Exchange(torch.autograd.Function):
    """Send part i of x (ranks, ...) to rank i, and return the parts that were sent here; so do gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _exchange(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x, group=group)
    return received
