"""Exposed communication: how long one rank waits for communication in a step, while it does not compute.

On a CPU it is the time in which the thread that runs the step waits for a collective or a message
(`paralab.measure.waits`). What a rank reduces or copies in other threads costs it nothing.

On a GPU it is the time in which a kernel of NCCL runs and no other kernel, copy or fill does, from torch.profiler.

Both include waiting for ranks that are late, and in a pipeline for the stage before: a bubble is exposed
communication, seen from the rank that stands in it. A process alone has none.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.distributed import ProcessGroup

from paralab.measure.split import ANY_AXIS, Split
from paralab.measure.waits import Waits

Span = tuple[float, float]
_NCCL = ("ncclDevKernel", "ncclKernel")  # how the names of its kernels begin, since and before NCCL 2.19


class ExposedCommunication:
    """Measure steps: `with ExposedCommunication(device) as seen: step(seen.next(batches))`, then `seen.split`.

    axes: mesh axis -> its process group on this rank, for waiting by axis. It can be entered again, for one step each
    time: `splits` has each of them, `split` their sum. Enter it around steps whose time does not count.
    """

    def __init__(self, device: torch.device, axes: Mapping[str, ProcessGroup] | None = None) -> None:
        self.splits: list[Split] = []
        self._probe: Waits | _Kernels = _Kernels() if device.type == "cuda" else Waits(axes or {})

    def __enter__(self) -> "ExposedCommunication":
        self._probe.start()
        self._data_s = 0.0
        self._began_s = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        if isinstance(self._probe, _Kernels):
            torch.cuda.synchronize()
        step_s = time.perf_counter() - self._began_s
        waits_s = self._probe.stop()
        idle_s = self._probe.idle_s(step_s) if isinstance(self._probe, _Kernels) else None
        self.splits.append(Split.of(step_s, waits_s, data_s=self._data_s, idle_s=idle_s))

    def next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, and note how long it took to come."""
        began_s = time.perf_counter()
        batch = next(batches)
        self._data_s += time.perf_counter() - began_s
        return batch

    @property
    def split(self) -> Split:
        """Where the time of all steps together went."""
        return Split.sum(self.splits)


class _Kernels:
    """What runs on a GPU."""

    def start(self) -> None:
        torch.cuda.synchronize()
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profile.__enter__()

    def stop(self) -> dict[str, float]:
        """Return the seconds since `start` in which nothing but communication ran; over which axis is not known."""
        self._profile.__exit__(None, None, None)
        on_device = [
            event
            for event in self._profile.events() or ()
            if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
        ]
        spans = [(event.name, (event.time_range.start / 1e6, event.time_range.end / 1e6)) for event in on_device]
        communication = [span for name, span in spans if name.startswith(_NCCL)]
        self._busy_s = _length([span for _, span in spans])
        return {ANY_AXIS: uncovered(communication, [span for name, span in spans if not name.startswith(_NCCL)])}

    def idle_s(self, step_s: float) -> float:
        """Return how long nothing ran in a step of so many seconds."""
        return max(step_s - self._busy_s, 0.0)


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
