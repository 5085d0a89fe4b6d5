"""Measure a device and its links: seconds of operations, of collectives and of messages (`paralab calibrate`)."""

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.measure import programs
from paralab.measure.programs import Small
from paralab.planning.measured.device import Rates, Sample, Sent
from paralab.planning.measured.operations import Operation, Recorder, describe

ALL_REDUCE_BYTES = (1 << 10, 1 << 16, 1 << 20, 16 << 20)
MESSAGE_BYTES = (1 << 10, 1 << 20, 16 << 20)
_LEAST_REPEATS, _MOST_REPEATS = 3, 200
_LEAST_PROGRAMS = 14  # that are run however short the time: all kinds are among them
_MADE = ("randn", "ones", "zeros", "arange")  # how inputs are made
_SIMILAR = 1.2  # sizes that are closer than this are measured once
_SWEPT_BYTES = 4 << 20  # more than a core keeps for itself


class Stopwatch(Recorder):
    """Time each kind and size of operation that runs inside, by running it several times.

    budget_s: of one operation each time. swept: whether other memory is read and written before each run, as by the
    operations before it in a training step. times_s: of each operation, one for each turn.
    """

    def __init__(self, budget_s: float, *, swept: bool) -> None:
        super().__init__()
        self.budget_s = budget_s
        self.times_s: dict[Operation, list[float]] = {}
        self._swept = torch.ones(_SWEPT_BYTES // 4) if swept else None
        self._owner: dict[Operation, int] = {}  # the program that measures it
        self._program, self._done = 0, set[Operation]()

    def begin(self, program: int) -> None:
        """Take note that a program begins, once more or for the first time."""
        self._program, self._done = program, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = describe(func, args, kwargs, result)
        if operation is not None and operation.kind not in _MADE and self._takes(operation):
            self.times_s.setdefault(operation, []).append(self._time(partial(func, *args, **kwargs), operation.bytes))
        return result

    def _takes(self, operation: Operation) -> bool:
        """Return whether this program measures an operation, and has not yet: the first that has it does."""
        known = operation if operation in self._owner else self._similar(operation)
        if known is None:
            self._owner[operation] = self._program
        elif known != operation or self._owner[known] != self._program or known in self._done:
            return False
        self._done.add(operation)
        return True

    def _similar(self, operation: Operation) -> Operation | None:
        for o in self._owner:
            alike = (o.kind, o.dtype, o.shape) == (operation.kind, operation.dtype, ())
            if alike and 1 / _SIMILAR < o.bytes / operation.bytes < _SIMILAR:
                return o
        return None

    def _time(self, run: Callable[[], object], size: int) -> float:
        """Return the median seconds of one call, which moves so many bytes."""
        times: list[float] = []
        deadline = time.perf_counter() + self.budget_s
        while not times or (time.perf_counter() < deadline and len(times) < _MOST_REPEATS):
            if self._swept is not None and size < _SWEPT_BYTES:
                self._swept.add_(1)
            times.append(_seconds(run))
        return statistics.median(times)

    def seconds(self) -> dict[Operation, float]:
        """Return what each operation took when the machine was undisturbed."""
        return {operation: undisturbed(times) for operation, times in self.times_s.items()}

    def samples(self) -> dict[str, tuple[Sample, ...]]:
        """Return what was measured, by kind and dtype."""
        found: dict[str, list[Sample]] = defaultdict(list)
        for o, seconds in self.seconds().items():
            found[f"{o.kind} {o.dtype}"].append(Sample(o.shape, o.flops, o.bytes, round(seconds, 9)))
        return {name: tuple(samples) for name, samples in sorted(found.items())}


def undisturbed(times: Sequence[float]) -> float:
    """Return the (lower) median of what was measured in several turns: fewer than half were of a busy machine."""
    return sorted(times)[(len(times) - 1) // 2]


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


class Turns:
    """What this process reaches while others do the same, measured in turns with what is measured between them.

    A turn runs programs until its time is up, and the next one goes on from there, round and round: so each operation
    is measured at several moments, and one in which the machine was busy spoils none.
    dtypes: the share of the time for each.
    """

    def __init__(self, device: torch.device, dtypes: Mapping[torch.dtype, float], *, budget_s: float) -> None:
        self.device, self.watch = device, Stopwatch(budget_s, swept=device.type == "cpu")
        self.overheads: list[tuple[float, float, float]] = []
        self._programs = [(share, programs.everything(device, dtype)) for dtype, share in dtypes.items()]
        numbers = itertools.count()
        self._round = [(share, itertools.cycle([(next(numbers), p) for p in every])) for share, every in self._programs]

    def take(self, seconds: float) -> None:
        """Measure for about so long: of each kind of operation something is measured, however short it is."""
        for share, every in self._round:
            deadline, done = time.perf_counter() + seconds * share, 0
            while time.perf_counter() < deadline or (not self.overheads and done < _LEAST_PROGRAMS):
                number, program = next(every)
                self.watch.begin(number)
                with self.watch:
                    program()
                done += 1
        self.overheads.append((*overheads(self.device), update_s(self.device)))

    def rates(self, processes: int) -> Rates:
        """Return what was measured. processes: that did the same."""
        forward_s, backward_s, tensor_s = (undisturbed(times) for times in zip(*self.overheads, strict=True))
        return Rates(
            threads=torch.get_num_threads(),
            processes=processes,
            forward_s=forward_s,
            backward_s=backward_s,
            tensor_s=tensor_s,
            operations=self.watch.samples(),
        )


def overheads(device: torch.device) -> tuple[float, float]:
    """Return what an operation takes beyond itself, in forward and in backward: Python, modules, autograd.

    From layers that are too small to take any time themselves.
    """
    model, x = Small().to(device), torch.ones(4, 8, device=device)
    watch = Stopwatch(budget_s=1e-4, swept=False)
    with Recorder() as forward:
        y = model(x).sum()
    with Recorder() as backward:
        y.backward()
    with watch:
        model(x).sum().backward()
    known = {(o.kind, o.shape or o.bytes): s for o, s in watch.seconds().items()}
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
    """Return what all-reduces over the ranks of a group add to what ranks do between them. Collective over them.

    Each comes after some work, as in a step of training: ranks do not arrive at one moment, and have to be woken up.
    """
    ranks, found = dist.get_world_size(group), []
    for size in ALL_REDUCE_BYTES:
        tensor = torch.ones(size // 4, device=device)
        run = partial(dist.all_reduce, tensor.zero_(), group=group)
        found.append(Sent(ranks, size, _amid_work_s(run, group, device, seconds=seconds / len(ALL_REDUCE_BYTES))))
    return found


def messages(group: dist.ProcessGroup, device: torch.device, *, seconds: float) -> list[Sent]:
    """Return seconds of a message from the first to the second rank of a group of two: half of there and back."""
    found = []
    first = dist.get_rank(group) == 0
    peer = dist.get_global_rank(group, 1 if first else 0)
    for size in MESSAGE_BYTES:
        run = partial(_there_and_back, torch.zeros(size // 4, device=device), peer, first, group)
        times = _times_s(run, group, seconds=seconds / len(MESSAGE_BYTES))
        found.append(Sent(2, size, statistics.median(times) / 2))
    return found


def _there_and_back(tensor: Tensor, peer: int, first: bool, group: dist.ProcessGroup) -> None:
    for sends in (first, not first):
        if sends:
            dist.send(tensor, peer, group=group)
        else:
            dist.recv(tensor, peer, group=group)


_CALLS = 8  # in a row that are timed together


def _amid_work_s(run: Callable[[], object], group: dist.ProcessGroup, device: torch.device, *, seconds: float) -> float:
    """Return the seconds that a call adds to work of about a millisecond."""
    square = torch.ones(_WORK_SIDE[device.type], _WORK_SIDE[device.type], device=device)

    def work() -> None:
        for _ in range(4):
            torch.mm(square, square)

    def calls() -> None:
        for _ in range(_CALLS):
            work()
            run()

    def alone() -> None:
        for _ in range(_CALLS):
            work()

    with_s = _times_s(calls, group, seconds=0.7 * seconds)
    without_s = _times_s(alone, group, seconds=0.3 * seconds)
    return max(statistics.median(with_s) - statistics.median(without_s), 1e-7) / _CALLS


_WORK_SIDE = {"cpu": 256, "cuda": 2048}


def _times_s(run: Callable[[], object], group: dist.ProcessGroup, *, seconds: float) -> list[float]:
    """Return the seconds of calls on this rank, of which all ranks make as many."""
    run()
    first = torch.tensor([_seconds(run)])
    dist.all_reduce(first, op=dist.ReduceOp.MAX, group=group) if dist.get_backend(group) == "gloo" else None
    repeats = max(_LEAST_REPEATS, min(_MOST_REPEATS, int(seconds / max(first.item(), 1e-6))))
    return [_seconds(run) for _ in range(repeats)]
