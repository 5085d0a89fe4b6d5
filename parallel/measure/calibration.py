"""Measure a device and its links: seconds of operations, of collectives and of messages (`paralab calibrate`)."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.measure import programs
from paralab.measure.programs import Small
from paralab.planning.measured.device import Rates, Sample, Sent
from paralab.planning.measured.operations import Operation, Recorder, describe

ALL_REDUCE_BYTES = (1 << 10, 1 << 20, 16 << 20)
MESSAGE_BYTES = (1 << 10, 1 << 20, 16 << 20)
_LEAST_REPEATS, _MOST_REPEATS = 3, 200
_LEAST_PROGRAMS = 12  # that are run however short the time: all kinds are among them
_MADE = ("randn", "ones", "zeros", "arange")  # how inputs are made
_SIMILAR = 1.2  # sizes that are closer than this are measured once


class Stopwatch(Recorder):
    """Time each kind and size of operation that runs inside, once, by running it several times.

    budget_s: of one operation, which is run three times at least.
    """

    def __init__(self, budget_s: float) -> None:
        super().__init__()
        self.budget_s = budget_s
        self.seconds: dict[Operation, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = describe(func, args, kwargs, result)
        if operation is not None and operation.kind not in _MADE and not self._knows(operation):
            self.seconds[operation] = self._time(partial(func, *args, **kwargs))
        return result

    def _knows(self, operation: Operation) -> bool:
        if operation in self.seconds:
            return True
        return any(
            (o.kind, o.dtype, o.shape) == (operation.kind, operation.dtype, ())
            and 1 / _SIMILAR < o.bytes / operation.bytes < _SIMILAR
            for o in self.seconds
        )

    def _time(self, run: Callable[[], object]) -> float:
        """Return the seconds of one call that a quarter of them stay below: others are of a machine that was busy."""
        times: list[float] = []
        deadline = time.perf_counter() + self.budget_s
        while len(times) < _LEAST_REPEATS or (time.perf_counter() < deadline and len(times) < _MOST_REPEATS):
            times.append(_seconds(run))
        return sorted(times)[len(times) // 4]

    def samples(self) -> dict[str, tuple[Sample, ...]]:
        """Return what was measured, by kind and dtype."""
        found: dict[str, list[Sample]] = defaultdict(list)
        for o, seconds in self.seconds.items():
            found[f"{o.kind} {o.dtype}"].append(Sample(o.shape, o.flops, o.bytes, round(seconds, 9)))
        return {name: tuple(samples) for name, samples in sorted(found.items())}


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rates(
    device: torch.device,
    dtypes: Mapping[torch.dtype, float],
    *,
    processes: int,
    seconds: float,
    advance: Callable[[], None] = lambda: None,
) -> Rates:
    """Return what this process reaches while others do the same.

    dtypes: the share of the time for each. seconds: about how long that may take: what does not fit is left out, but of
    each kind of operation something is measured.
    """
    watch = Stopwatch(budget_s=seconds / 2000)
    for dtype, share in dtypes.items():
        deadline = time.perf_counter() + seconds * share
        every = programs.everything(device, dtype)
        for number, program in enumerate(every):
            if number >= _LEAST_PROGRAMS and time.perf_counter() > deadline:
                break
            with watch:
                program()
            advance()
    forward_s, backward_s = overheads(device, watch)
    return Rates(
        threads=torch.get_num_threads(),
        processes=processes,
        forward_s=forward_s,
        backward_s=backward_s,
        tensor_s=update_s(device),
        operations=watch.samples(),
    )


def overheads(device: torch.device, watch: Stopwatch) -> tuple[float, float]:
    """Return what an operation takes beyond itself, in forward and in backward: Python, modules, autograd.

    From layers that are too small to take any time themselves.
    """
    model, x = Small().to(device), torch.ones(4, 8, device=device)
    with Recorder() as forward:
        y = model(x).sum()
    with Recorder() as backward:
        y.backward()
    with watch:
        model(x).sum().backward()
    known = {(o.kind, o.shape or o.bytes): s for o, s in watch.seconds.items()}
    both = []
    for recorder, run in ((forward, lambda: model(x).sum()), (backward, None)):
        own_s = sum(n * known.get((o.kind, o.shape or o.bytes), 0.0) for o, n in recorder.work.operations.items())
        times = [_seconds(run) if run else _backward_s(model, x) for _ in range(30)]
        both.append(max(statistics.median(times) - own_s, 0.0) / recorder.work.launches)
    return both[0], both[1]


def _backward_s(model: Small, x: Tensor) -> float:
    y = model(x).sum()
    return _seconds(y.backward)


def update_s(device: torch.device) -> float:
    """Return what the update of a parameter takes however small it is, its gradient's norm and clipping included."""
    few, many = (_step_s(n, device) for n in (8, 72))
    return max(many - few, 0.0) / 64


def _step_s(parameters: int, device: torch.device) -> float:
    every = [torch.nn.Parameter(torch.ones(8, device=device)) for _ in range(parameters)]
    optimizer = torch.optim.AdamW(every, fused=True)

    def step() -> None:
        gradients = [torch.ones_like(parameter) for parameter in every]
        for parameter, gradient in zip(every, gradients, strict=True):
            parameter.grad = gradient
        torch.stack(torch._foreach_norm(gradients)).square().sum().item()
        optimizer.step()

    return statistics.median(_seconds(step) for _ in range(20))


def all_reduces(group: dist.ProcessGroup, device: torch.device, *, seconds: float) -> list[Sent]:
    """Return seconds of all-reduces over the ranks of a group. Collective over them."""
    ranks, found = dist.get_world_size(group), []
    for size in ALL_REDUCE_BYTES:
        tensor = torch.ones(size // 4, device=device)
        run = partial(dist.all_reduce, tensor.zero_(), group=group)
        found.append(Sent(ranks, size, _collective_s(run, group, seconds=seconds / len(ALL_REDUCE_BYTES))))
    return found


def messages(group: dist.ProcessGroup, device: torch.device, *, seconds: float) -> list[Sent]:
    """Return seconds of a message from the first to the second rank of a group of two: half of there and back."""
    found = []
    first = dist.get_rank(group) == 0
    peer = dist.get_global_rank(group, 1 if first else 0)
    for size in MESSAGE_BYTES:
        run = partial(_there_and_back, torch.zeros(size // 4, device=device), peer, first, group)
        found.append(Sent(2, size, _collective_s(run, group, seconds=seconds / len(MESSAGE_BYTES)) / 2))
    return found


def _there_and_back(tensor: Tensor, peer: int, first: bool, group: dist.ProcessGroup) -> None:
    for sends in (first, not first):
        if sends:
            dist.send(tensor, peer, group=group)
        else:
            dist.recv(tensor, peer, group=group)


def _collective_s(run: Callable[[], object], group: dist.ProcessGroup, *, seconds: float) -> float:
    """Return the median seconds of a call on the slowest rank; all ranks make as many."""
    run()
    first = torch.tensor([_seconds(run)])
    dist.all_reduce(first, op=dist.ReduceOp.MAX, group=group) if dist.get_backend(group) == "gloo" else None
    repeats = max(_LEAST_REPEATS, min(_MOST_REPEATS, int(seconds / max(first.item(), 1e-6))))
    times = torch.tensor([_seconds(run) for _ in range(repeats)])
    return float(times.median())
