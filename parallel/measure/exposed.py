"""Exposed communication: how long one rank waits for communication in a step, while it does not compute.

On a CPU it is the time in which the thread that runs the step waits for a collective or a message: in `Work.wait`,
which every blocking call of torch.distributed ends in (FSDP2, pipelines, DeepSpeed and our own strategies use it), in
the `wait_tensor` of functional collectives (DTensor), and at the end of backward in the C++ reducer of
DistributedDataParallel, which keeps that time itself. What a rank reduces or copies in other threads costs it nothing.

On a GPU it is the time in which a kernel of NCCL runs and no other kernel, copy or fill does, from torch.profiler.

Both include waiting for ranks that are late, and in a pipeline for the stage before: a bubble is exposed
communication, seen from the rank that stands in it. A process alone has none.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed import Work
from torch.distributed import _functional_collectives as functional
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

Span = tuple[float, float]
_NCCL = ("ncclDevKernel", "ncclKernel")  # how the names of its kernels begin, since and before NCCL 2.19
_REDUCER_SAMPLES = 100  # every so many steps, torch's own setting (kDDPRuntimeLoggingSampleRate)


class Split(NamedTuple):
    """Where the time of one rank went."""

    step_s: float
    exposed_s: float

    @property
    def own_s(self) -> float:
        """Return the time this rank needed itself."""
        return self.step_s - self.exposed_s


class ExposedCommunication:
    """Measure steps: `with ExposedCommunication(device) as seen: step()`, then `seen.split`.

    It can be entered again, for one step each time, and adds up. Enter it around steps whose time does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.split = Split(0.0, 0.0)
        self._probe: _Waits | _Kernels = _Kernels() if device.type == "cuda" else _Waits()

    def __enter__(self) -> "ExposedCommunication":
        self._probe.start()
        self._began_s = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if isinstance(self._probe, _Kernels):
            torch.cuda.synchronize()
        step_s = time.perf_counter() - self._began_s
        self.split = Split(self.split.step_s + step_s, self.split.exposed_s + self._probe.stop())


class _Waits:
    """What the calling thread waits for, on a CPU."""

    def start(self) -> None:
        self._waited_s, self._thread = 0.0, threading.get_ident()
        self._replicas: set[DistributedDataParallel] = set()
        self._undo = ExitStack()
        self._watch(Work, "wait")
        self._watch(functional, "wait_tensor")
        self._undo.callback(register_module_forward_pre_hook(self._meet).remove)

    def stop(self) -> float:
        """Return the seconds waited since `start`."""
        self._undo.close()
        return self._waited_s + sum(_reducer_wait_s(replica) for replica in self._replicas)

    def _watch(self, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            began_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if threading.get_ident() == self._thread:
                    self._waited_s += time.perf_counter() - began_s

        setattr(owner, name, watched)
        self._undo.callback(setattr, owner, name, function)

    def _meet(self, module: nn.Module, inputs: Any) -> None:
        if isinstance(module, DistributedDataParallel):
            module._set_ddp_runtime_logging_sample_rate(1)  # else the reducer keeps no times of this step
            self._replicas.add(module)


def _reducer_wait_s(replica: DistributedDataParallel) -> float:
    """Return how long the last backward waited for its all-reduces when all gradients had been computed."""
    assert replica.logger is not None
    replica.logger.set_runtime_stats_and_log()
    times_ns = replica._get_ddp_logging_data()
    replica._set_ddp_runtime_logging_sample_rate(_REDUCER_SAMPLES)
    return (times_ns["backward_comm_time"] - times_ns["backward_compute_comm_overlap_time"]) / 1e9


class _Kernels:
    """What runs on a GPU."""

    def start(self) -> None:
        torch.cuda.synchronize()
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profile.__enter__()

    def stop(self) -> float:
        """Return the seconds since `start` in which nothing but communication ran."""
        self._profile.__exit__(None, None, None)
        on_device = [
            event
            for event in self._profile.events() or ()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        spans = [(event.name, (event.time_range.start / 1e6, event.time_range.end / 1e6)) for event in on_device]
        communication = [span for name, span in spans if name.startswith(_NCCL)]
        return uncovered(communication, [span for name, span in spans if not name.startswith(_NCCL)])


def uncovered(spans: Iterable[Span], covers: Iterable[Span]) -> float:
    """Return the length of the union of spans outside the union of covers."""
    covers = list(covers)
    return _length([*spans, *covers]) - _length(covers)


def _length(spans: Iterable[Span]) -> float:
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def exposed_share(ranks: Sequence[Split]) -> float:
    """Return the exposed share of the step time, as a mean over ranks."""
    return statistics.mean(split.exposed_s / split.step_s for split in ranks)


class Straggler(NamedTuple):
    """The rank that needs most time itself, and how many times that of the others (their median)."""

    rank: int
    ratio: float | None


def straggler(ranks: Sequence[Split]) -> Straggler:
    """Return the slowest of two ranks or more; its ratio is None where the others need no time that could be measured.

    Steps take equally long on all ranks, because they wait for each other; what differs is what a rank needs itself.
    """
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank].own_s)
    others_s = statistics.median(split.own_s for rank, split in enumerate(ranks) if rank != slowest)
    return Straggler(slowest, ranks[slowest].own_s / others_s if others_s > 0 else None)
