"""Ring attention (Liu et al. 2023): keys and values go round, and each rank has its own queries meet all of them.

The parts of a softmax are merged by their log-sum-exp (Dao et al. 2022, FlashAttention, section 3.1), in fp32 or wider.
In backward keys and values go round once more, and the sums of their gradients follow them; a rank adds its own part
when they come home. What is sent on travels while the rank computes with what it has.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.axes.context_parallel import local
from paralab.models.spec import at_least_fp32


class Meeting(NamedTuple):
    """Which of a rank's queries meet which of the keys that have come by: slices of their positions."""

    queries: slice
    keys: slice
    causal: bool


class Ring:
    """Attention over the positions of all ranks of a group. causal: whether none looks ahead.

    A causal one takes an early and a late piece of the sequence from each rank (`pieces.take_early_and_late`).
    """

    def __init__(self, group: dist.ProcessGroup, *, causal: bool) -> None:
        self.group, self.causal = group, causal
        self.rank, self.ranks = group.rank(), group.size()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Take q (batch, heads, seq / ranks, head_dim), k and v with as many heads or fewer; return q's heads of v."""
        return _RingAttention.apply(q, k, v, self)

    def meeting(self, owner: int, length: int) -> Meeting:
        """Return which queries meet which keys of a rank. length: positions that each rank has.

        Of an earlier rank's keys the late half is behind all queries here; of a later rank's, all are behind the early
        half of the queries. So each costs the same.
        """
        every, half = slice(0, length), length // 2
        if not self.causal or owner == self.rank:
            return Meeting(every, every, self.causal)
        if owner < self.rank:
            return Meeting(every, slice(0, half), False)
        return Meeting(slice(half, length), every, False)

    def pass_on(self, mine: Tensor) -> "Passing":
        """Begin to send a tensor of any shape to the next rank, and to receive one of its shape from the one before."""
        mine = mine.contiguous()
        got = torch.empty_like(mine)
        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        operations = [
            dist.P2POp(dist.isend, mine, group=self.group, group_peer=after),
            dist.P2POp(dist.irecv, got, group=self.group, group_peer=before),
        ]
        return Passing(mine, got, dist.batch_isend_irecv(operations))

    def round(self, kv: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (owner, its keys and values) for every rank, this one first; kv: those of this rank, in any shape."""
        for step in range(self.ranks):
            passing = self.pass_on(kv) if step < self.ranks - 1 else None
            yield (self.rank - step) % self.ranks, kv
            if passing is not None:
                kv = passing.wait()


class Passing(NamedTuple):
    """A tensor under way to the next rank, and one of its shape that comes from the one before."""

    sent: Tensor  # kept until it has been
    got: Tensor
    works: list[dist.Work]

    def wait(self) -> Tensor:
        """Return what has come, of the shape of what was sent."""
        for work in self.works:
            work.wait()
        return self.got


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, ring: Ring) -> Tensor:
        total: local.Part | None = None
        for owner, kv in ring.round(_joined(k, v)):
            queries, keys, causal = ring.meeting(owner, q.shape[2])
            cut_k, cut_v = (x[:, :, keys] for x in _parted(kv, (k, v)))
            part = local.forward(q[:, :, queries], cut_k, cut_v, causal=causal)
            total = part.widened() if total is None else total.merge(part, queries)
        assert total is not None
        out = total.out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, total.lse)
        ctx.ring = ring
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        ring: Ring = ctx.ring
        grad_q = own = q  # until the first, this rank itself
        passing: Passing | None = None
        for owner, kv in ring.round(_joined(k, v)):
            queries, keys, causal = ring.meeting(owner, q.shape[2])
            cut_k, cut_v = (x[:, :, keys] for x in _parted(kv, (k, v)))
            cut_grad, cut_q, cut_out, cut_lse = (x[:, :, queries] for x in (grad, q, out, lse))
            part_q, *part_kv = local.backward(cut_grad, cut_q, cut_k, cut_v, cut_out, cut_lse, causal=causal)
            if owner == ring.rank:
                grad_q, own = at_least_fp32(part_q), at_least_fp32(_joined(*part_kv))
                continue
            grad_q[:, :, queries] += part_q
            summed = torch.zeros_like(own) if passing is None else passing.wait()
            for total, part in zip(_parted(summed, (k, v)), part_kv, strict=True):
                total[:, :, keys] += part
            passing = ring.pass_on(summed)
        grad_k, grad_v = _parted(own + passing.wait() if passing is not None else own, (k, v))
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None


def _joined(*tensors: Tensor) -> Tensor:
    """Return keys and values, which may differ in width, as one message: (elements of all)."""
    return torch.cat([x.flatten() for x in tensors])


def _parted(joined: Tensor, like: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Yield views of what was joined, in the shapes of `like`."""
    for part, x in zip(joined.split([x.numel() for x in like]), like, strict=True):
        yield part.view(x.shape)
