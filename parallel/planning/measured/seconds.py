"""Seconds of operations, collectives and messages on a device that was measured, by what was measured nearby."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import pstdev

from paralab.axes.axis import Transfer
from paralab.axes.forms import wire_bytes
from paralab.planning.measured.device import MeasuredDevice, Rates, Sample, Sent, between
from paralab.planning.measured.operations import ATTENTION, Operation, Work

_PLAIN = "add"  # what stands for operations that were not measured: they move bytes
_ENOUGH = 2048  # a size from which on larger ones are no faster
_TILES = (16, 8)  # queries of a block of attention's kernel on a CPU, and keys of a vector
_NEAR = 4  # the closer a measured shape is, the more it counts: by this power of the distance
# how much a factor of two in each size counts
_WEIGHTS = {"product": (1, 1, 1), "convolution": (0.5, 1, 1, 0.5), "attention": (0.3, 1, 1, 1, 8)}


def pass_s(work: Work, rates: Rates, *, backward: bool) -> float:
    """Return the seconds of a pass in one process whose threads have cores of their own."""
    own_s = sum(times * operation_s(operation, rates) for operation, times in work.operations.items())
    return own_s + work.launches * (rates.backward_s if backward else rates.forward_s)


@lru_cache(maxsize=1 << 16)
def operation_s(operation: Operation, rates: Rates) -> float:
    """Return the seconds of one operation, as long as those measured with sizes near its own."""
    samples = _samples(operation.kind, operation.dtype, rates)
    if operation.flops and samples[0].flops:
        return _by_shape(operation, samples)
    return bytes_s(operation.kind, operation.bytes, rates, dtype=operation.dtype)


def bytes_s(kind: str, size: float, rates: Rates, *, dtype: str = "float32") -> float:
    """Return the seconds of an operation that moves so many bytes.

    Above the largest one of its kind that was measured, it takes longer as sums of tensors do.
    """
    points, plain = ([(s.bytes, s.seconds) for s in _samples(name, dtype, rates)] for name in (kind, _PLAIN))
    largest = max(at for at, _ in points)
    longer = between(plain, size) / between(plain, largest) if size > largest else 1.0
    return between(points, min(size, largest)) * longer


def _samples(kind: str, dtype: str, rates: Rates) -> tuple[Sample, ...]:
    """Return what was measured of this kind and dtype, of the kind in fp32, or of operations that move bytes."""
    for name in (kind, _PLAIN):
        for width in (dtype, "float32"):
            if found := rates.operations.get(f"{name} {width}"):
                return found
    return rates.operations[f"{_PLAIN} float32"]


def _by_shape(operation: Operation, samples: tuple[Sample, ...]) -> float:
    """Return FLOPs over the FLOP/s of measured shapes, each the heavier the closer it is (Shepard 1968).

    What is averaged is the speed that a shape would have if it were as slow for its narrow sides as all are together.
    """
    operation = _in_whole_tiles(operation)
    weights, width = _WEIGHTS[operation.kind.removesuffix("_backward")], _half_speed_width(samples)
    total = logs = 0.0
    for sample in samples:
        steps = (
            w * (_octaves(a) - _octaves(b)) for w, a, b in zip(weights, operation.shape, sample.shape, strict=True)
        )
        weight = 1 / (sum(step**2 for step in steps) + 1e-6) ** (_NEAR / 2)
        total += weight
        logs += weight * (math.log(sample.flops / sample.seconds) + _slowness(sample.shape, width))
    return operation.flops / math.exp(logs / total - _slowness(operation.shape, width))


def _in_whole_tiles(operation: Operation) -> Operation:
    """Return attention over positions that fill the tiles of its kernel; any other operation as it is.

    A tile that queries or keys fill in part takes about as long as a whole one: `_TILES`, and all were measured whole.
    """
    if not operation.kind.startswith(ATTENTION):
        return operation
    heads, queries, keys, each, causal = operation.shape
    whole = [-(-size // tile) * tile for size, tile in zip((queries, keys), _TILES, strict=True)]
    flops = operation.flops * math.prod(whole) / (queries * keys)
    return replace(operation, shape=(heads, *whole, each, causal), flops=flops)


@lru_cache(maxsize=64)
def _half_speed_width(samples: tuple[Sample, ...]) -> float:
    """Return the width of a side at which speed is halved that explains most of what was measured; 0 for none."""

    def left(width: float) -> float:
        return pstdev(math.log(s.flops / s.seconds) + _slowness(s.shape, width) for s in samples)

    return min((0.0, *(2.0**n for n in range(8))), key=left)


def _slowness(shape: Sequence[int], width: float) -> float:
    """Return the logarithm of how many times slower a shape is than one whose sides are all long."""
    return sum(math.log1p(width / max(size, 1)) for size in shape)


def _octaves(size: int) -> float:
    return math.log2(min(max(size, 0.5), _ENOUGH))


def transfer_s(transfer: Transfer, device: MeasuredDevice, *, network_bytes_per_s: float | None = None) -> float:
    """Return the seconds that all calls of a collective take, or all messages of a rank.

    network_bytes_per_s: of the link between machines, where its ranks are on several.
    """
    if not transfer.calls or transfer.ranks < 2:
        return 0.0
    each = float(transfer.payload_bytes) / transfer.calls
    if transfer.op == "send":
        near_s = _sent_s(device.messages, each)
    else:
        near_s = _all_reduce_s(device, transfer.ranks, each * _like_all_reduce(transfer.op, transfer.ranks))
    wire = float(wire_bytes(transfer.op, round(each), transfer.ranks, backend="gloo"))
    far_s = wire / network_bytes_per_s if network_bytes_per_s else 0.0
    return transfer.calls * max(near_s, far_s)


def _like_all_reduce(op: str, ranks: int) -> float:
    """Return how many bytes of an all-reduce send as much as one byte of this operation."""
    size = 1 << 20
    return float(wire_bytes(op, size, ranks, backend="gloo") / wire_bytes("all_reduce", size, ranks, backend="gloo"))


def _all_reduce_s(device: MeasuredDevice, ranks: int, size: float) -> float:
    """Return the seconds of one all-reduce; over more ranks than were measured it takes proportionally longer."""
    measured = sorted({s.ranks for s in device.all_reduces})
    if not measured:
        return 0.0
    nearest = next((n for n in measured if n >= ranks), measured[-1])
    seconds = _sent_s([s for s in device.all_reduces if s.ranks == nearest], size)
    return seconds * max(ranks / nearest, 1.0)


def _sent_s(measured: Sequence[Sent], size: float) -> float:
    return between([(s.bytes, s.seconds) for s in measured], size) if measured else 0.0
