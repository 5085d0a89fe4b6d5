"""Gradients that are made smaller before data ranks average them. What comes out is not what one process computes.

The hooks are registered with torch's DistributedDataParallel, so that they run during backward, a bucket at a time:

- bf16, fp16: gradients are rounded to 16 bits, and summed in them.
- powersgd: a matrix is sent as the product of two thin ones, and what that leaves out is added to the next step's
  gradient (Vogels et al. 2019, arXiv:1905.13727, algorithms 1 and 2). torch's own hook sends from threads of the
  backend, where the communication ledger cannot count.
- int8: each matrix is cut into blocks of 256 numbers that share a scale, each rank adds up its part of the sum in fp32,
  and parts travel rounded to 8 bits, out and back (block-wise scales: Dettmers et al. 2022, arXiv:2110.02861).

Vectors (biases and norms) are sent whole by the last two: they are few, and round badly.
"""

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from paralab.axes.axis import Transfer
from paralab.options.choices import GradCompression
from paralab.processes.mesh import Mesh

POWERSGD_RANK = 4
BLOCK = 256  # numbers that share a scale

Bucket = dist.GradBucket
Done = torch.futures.Future[Tensor]


def compress(model: DistributedDataParallel, kind: GradCompression, *, mesh: Mesh) -> None:
    """Have backward send compressed gradients over the data ranks."""
    group = mesh.group("dp")
    if kind == "powersgd":
        model.register_comm_hook(_PowerSGD(group), _thin_matrices)
    elif kind == "int8":
        model.register_comm_hook(group, _eight_bits)
    else:
        dtype = torch.bfloat16 if kind == "bf16" else torch.float16
        model.register_comm_hook((group, dtype), _sixteen_bits)


def transfers(
    kind: GradCompression, shapes: Iterable[tuple[int, ...]], *, ranks: int, element: int
) -> Iterator[Transfer]:
    """Yield what a rank sends in a step for gradients of these shapes. element: bytes of a number of a gradient."""
    shapes = list(shapes)
    if kind in ("bf16", "fp16"):
        yield Transfer("all_reduce", ranks, 2 * sum(map(prod, shapes)), when="backward")
        return
    small = [shape for shape in shapes if is_compressed(shape, kind)]
    whole = sum(map(prod, shapes)) - sum(map(prod, small))
    if kind == "powersgd":
        thin = sum(POWERSGD_RANK * (shape[0] + prod(shape[1:])) for shape in small)
        yield Transfer("all_reduce", ranks, (whole + thin) * element, when="backward")
        return
    yield Transfer("all_reduce", ranks, whole * element, when="backward")
    packed = sum(_padded(prod(shape), ranks) for shape in small)
    for op in ("all_to_all", "all_gather"):
        yield Transfer(op, ranks, packed + packed // BLOCK * 4, when="backward")


def is_compressed(shape: tuple[int, ...], kind: GradCompression) -> bool:
    """Return whether a gradient of this shape is made smaller."""
    if kind == "int8":
        return len(shape) > 1
    rows, columns = (shape[0], prod(shape[1:])) if shape else (1, 1)
    rank = min(rows, columns, POWERSGD_RANK)
    return (rows + columns) * rank * 2 < rows * columns


def _padded(numel: int, ranks: int) -> int:
    """Return how many numbers are sent for so many: whole blocks, as many for each rank."""
    return -(-numel // (ranks * BLOCK)) * ranks * BLOCK


def _sixteen_bits(state: tuple[dist.ProcessGroup, torch.dtype], bucket: Bucket) -> Done:
    group, dtype = state
    buffer = bucket.buffer()
    small = buffer.to(dtype).div_(group.size())  # before the sum, which fp16 might not hold
    dist.all_reduce(small, group=group)
    buffer.copy_(small)
    return _done(buffer)


class _PowerSGD:
    """What PowerSGD keeps from step to step, by parameter: the right factor, and what was not sent (like it)."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.right: dict[Tensor, Tensor] = {}
        self.left_out: dict[Tensor, Tensor] = {}

    def matrix(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """Return a gradient (rows, ...) as (rows, columns), with what earlier steps left out of it."""
        if parameter not in self.right:
            # seeded by the shape, so that every rank begins with the same
            draw = torch.Generator().manual_seed(hash(grad.shape) % 2**31)
            right = torch.randn(prod(grad.shape[1:]), POWERSGD_RANK, generator=draw, dtype=grad.dtype)
            self.right[parameter] = right.to(grad.device)
            self.left_out[parameter] = torch.zeros_like(grad)
        return (grad + self.left_out[parameter]).flatten(1)


def _thin_matrices(state: _PowerSGD, bucket: Bucket) -> Done:
    """Average a bucket: matrices as products of two thin ones, all else as it is."""
    named = list(zip(bucket.parameters(), bucket.gradients(), strict=True))
    thin = [(p, grad) for p, grad in named if is_compressed(tuple(grad.shape), "powersgd")]
    whole = [grad for _, grad in named if not is_compressed(tuple(grad.shape), "powersgd")]
    _average(whole, state.group)
    matrices = [state.matrix(p, grad) for p, grad in thin]
    left = [matrix @ state.right[p] for matrix, (p, _) in zip(matrices, thin, strict=True)]
    _average(left, state.group)
    left = [torch.linalg.qr(x).Q for x in left]
    right = [matrix.T @ x for matrix, x in zip(matrices, left, strict=True)]
    _average(right, state.group)
    for (p, grad), matrix, a, b in zip(thin, matrices, left, right, strict=True):
        sent = a @ b.T
        state.left_out[p].copy_((matrix - sent).view_as(grad))
        state.right[p] = b
        grad.copy_(sent.view_as(grad))
    return _done(bucket.buffer())


def _eight_bits(group: dist.ProcessGroup, bucket: Bucket) -> Done:
    """Average a bucket: each rank adds up its part of every matrix, from 8 bits, and sends that on in 8 bits."""
    matrices = [grad for grad in bucket.gradients() if grad.ndim > 1]
    vectors = [grad for grad in bucket.gradients() if grad.ndim <= 1]
    _average(vectors, group)
    if matrices:
        _average_matrices(matrices, group)
    return _done(bucket.buffer())


def _average_matrices(matrices: list[Tensor], group: dist.ProcessGroup) -> None:
    """Average matrices (rows, ...) over a group, in place."""
    ranks = group.size()
    parts = [_in_parts(grad, ranks) for grad in matrices]
    mine = _pack(torch.cat(parts, dim=1))  # (ranks, bytes)
    theirs = torch.empty_like(mine)
    dist.all_to_all_single(theirs, mine, group=group)
    summed = _unpack(theirs).sum(dim=0, keepdim=True) / ranks
    every = torch.empty_like(mine)
    dist.all_gather_single(every, _pack(summed), group=group)
    averaged = _unpack(every)  # (ranks, numbers of a rank)
    for grad, piece in zip(matrices, averaged.split([part.shape[1] for part in parts], dim=1), strict=True):
        grad.copy_(piece.flatten()[: grad.numel()].view_as(grad))


def _in_parts(grad: Tensor, ranks: int) -> Tensor:
    """Return a gradient as (ranks, numbers), with zeros after its end."""
    flat = grad.new_zeros(_padded(grad.numel(), ranks))
    flat[: grad.numel()] = grad.flatten()
    return flat.view(ranks, -1)


def _pack(numbers: Tensor) -> Tensor:
    """Return (rows, n) in 8 bits: n bytes a row, then the scales of its blocks, as bytes of fp32."""
    blocks = numbers.view(len(numbers), -1, BLOCK)
    scales = (blocks.abs().amax(dim=2) / 127).float()
    rounded = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, :, None]).round().to(torch.int8)
    return torch.cat([rounded.flatten(1).view(torch.uint8), scales.view(torch.uint8)], dim=1)


def _unpack(packed: Tensor) -> Tensor:
    """Return the fp32 numbers (rows, n) of what `_pack` made of them."""
    n = packed.shape[1] * BLOCK // (BLOCK + 4)
    rounded, scales = packed[:, :n].view(torch.int8), packed[:, n:].contiguous().view(torch.float32)
    return (rounded.view(len(packed), -1, BLOCK) * scales[:, :, None]).flatten(1)


def _average(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    """Average tensors of any shapes over a group, in place, in one all-reduce."""
    if not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, piece in zip(tensors, (flat / group.size()).split([x.numel() for x in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))


def _done(value: Any) -> Done:
    future: Done = torch.futures.Future()
    future.set_result(value)
    return future
