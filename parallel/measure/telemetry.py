"""Utilisation, power and energy while a run is measured, sampled by a thread.

A sample takes well under a millisecond on a CPU and a few through NVML; at the default interval that is less than
1% of one core. `Telemetry.sampler_share` says what it took.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from paralab.measure.nvml import NvmlDevice
from paralab.processes.allowed import cores_allowed

SHORTEST_S = 0.1  # of which the load of a process means something: the kernel counts in ticks of 10 ms


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What one rank saw over a window; names shared with `RunRecord` mean the same. Without a GPU its fields are None.

    CPU utilisation is that of this process and the children it had when the window began (data loaders), as a share
    of the cores allowed. CPU energy is that of all sockets of the machine, other processes included.
    """

    window_s: float
    samples: int
    sampler_share: float  # processor time of the sampler over the window
    gpu_utilisation_mean_share: float | None = None
    gpu_utilisation_max_share: float | None = None
    gpu_used_mean_bytes: int | None = None
    gpu_used_max_bytes: int | None = None
    gpu_power_mean_w: float | None = None
    gpu_power_max_w: float | None = None
    gpu_clock_mean_mhz: float | None = None
    gpu_clock_max_mhz: float | None = None
    gpu_temperature_mean_c: float | None = None
    gpu_temperature_max_c: float | None = None
    gpu_throttle_reasons: str | None = None  # joined by "; ", empty when the clocks were never held down
    gpu_energy_j: float | None = None
    cpu_utilisation_mean_share: float | None = None
    cpu_utilisation_max_share: float | None = None
    cpu_energy_j: float | None = None
    process_rss_mean_bytes: int | None = None
    process_rss_max_bytes: int | None = None


@dataclass(frozen=True)
class _Sample:
    time_s: float
    cpu_s: float
    rss_bytes: int
    gpu_utilisation: float | None = None
    gpu_used_bytes: int | None = None
    gpu_power_w: float | None = None
    gpu_clock_mhz: float | None = None
    gpu_temperature_c: float | None = None
    throttles: frozenset[str] | None = None


class Sampler:
    """Sample this process and one GPU between `start_window` and `stop_window`.

    gpu_uuid: as `paralab.measure.nvml.cuda_uuid` gives it, or None for a run on a CPU. A GPU that NVML does not
    find leaves its fields None.
    """

    def __init__(
        self,
        *,
        gpu_uuid: str | None = None,
        interval_s: float = 0.5,
        powercap: Path = Path("/sys/class/powercap"),
    ) -> None:
        self._gpu = NvmlDevice.open(gpu_uuid) if gpu_uuid else None
        self._interval_s, self._powercap = interval_s, powercap
        self._process, self._cores = psutil.Process(), cores_allowed()
        self._thread: threading.Thread | None = None
        self._sampling = threading.Lock()  # a lap ends between two samples

    def start_window(self) -> None:
        """Begin a window. Raises: RuntimeError if one is open."""
        if self._thread:
            raise RuntimeError("a telemetry window is open: call stop_window first")
        # Looking for children scans every process of the machine: once a window, not once a sample.
        self._cpu_s = dict.fromkeys([self._process, *self._process.children(recursive=True)], 0.0)
        self._begin()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop_window(self) -> Telemetry:
        """End the window and sum it up. Raises: RuntimeError if none is open."""
        if not self._thread:
            raise RuntimeError("no telemetry window is open: call start_window first")
        self._stop.set()
        self._thread.join()
        self._thread = None
        return self._sum_up()

    def lap(self) -> Telemetry:
        """Sum up the window so far, and begin the next one at this moment. Raises: RuntimeError if none is open."""
        if not self._thread:
            raise RuntimeError("no telemetry window is open: call start_window first")
        with self._sampling:
            found = self._sum_up()
            self._begin()
        return found

    def _begin(self) -> None:
        self._rapl_start = read_rapl(self._powercap)
        self._gpu_energy_start_j = self._gpu.energy_j() if self._gpu else None
        self._busy_s, self._samples = 0.0, [self._sample()]

    def _sum_up(self) -> Telemetry:
        self._samples.append(self._sample())
        gpu_start_j, gpu_end_j = self._gpu_energy_start_j, self._gpu.energy_j() if self._gpu else None
        return _summarise(
            self._samples,
            cores=self._cores,
            busy_s=self._busy_s,
            gpu_energy_j=None if gpu_end_j is None or gpu_start_j is None else gpu_end_j - gpu_start_j,
            cpu_energy_j=rapl_joules(self._rapl_start, read_rapl(self._powercap)),
        )

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            with self._sampling:
                began = time.thread_time()
                self._samples.append(self._sample())
                self._busy_s += time.thread_time() - began

    def _sample(self) -> _Sample:
        for process in self._cpu_s:
            try:
                times = process.cpu_times()
            except psutil.Error:  # a child that has ended keeps the time it had
                continue
            self._cpu_s[process] = times.user + times.system
        now_s, cpu_s, rss_bytes = time.perf_counter(), sum(self._cpu_s.values()), self._process.memory_info().rss
        gpu = self._gpu
        if gpu is None:
            return _Sample(now_s, cpu_s, rss_bytes)
        return _Sample(
            now_s,
            cpu_s,
            rss_bytes,
            gpu.utilisation_share(),
            gpu.used_bytes(),
            gpu.power_w(),
            gpu.clock_mhz(),
            gpu.temperature_c(),
            gpu.throttle_reasons(),
        )


def _summarise(
    samples: list[_Sample], *, cores: float, busy_s: float, gpu_energy_j: float | None, cpu_energy_j: float | None
) -> Telemetry:
    first, last = samples[0], samples[-1]
    window_s = last.time_s - first.time_s
    # The last interval may be cut so short that the kernel's 10 ms clock ticks make it meaningless: not a maximum.
    whole = [(a, b) for a, b in pairwise(samples) if b.time_s - a.time_s >= SHORTEST_S] or [(first, last)]
    loads = [max(b.cpu_s - a.cpu_s, 0.0) / (b.time_s - a.time_s) / cores for a, b in whole]
    utilisation = _mean_max(s.gpu_utilisation for s in samples)
    used = _mean_max(s.gpu_used_bytes for s in samples)
    power = _mean_max(s.gpu_power_w for s in samples)
    clock = _mean_max(s.gpu_clock_mhz for s in samples)
    temperature = _mean_max(s.gpu_temperature_c for s in samples)
    rss = _mean_max(s.rss_bytes for s in samples)
    seen = [s.throttles for s in samples if s.throttles is not None]
    mean_share = max(last.cpu_s - first.cpu_s, 0.0) / window_s / cores
    return Telemetry(
        window_s=window_s,
        samples=len(samples),
        sampler_share=busy_s / window_s,
        gpu_utilisation_mean_share=utilisation[0],
        gpu_utilisation_max_share=utilisation[1],
        gpu_used_mean_bytes=None if used[0] is None else int(used[0]),
        gpu_used_max_bytes=None if used[1] is None else int(used[1]),
        gpu_power_mean_w=power[0],
        gpu_power_max_w=power[1],
        gpu_clock_mean_mhz=clock[0],
        gpu_clock_max_mhz=clock[1],
        gpu_temperature_mean_c=temperature[0],
        gpu_temperature_max_c=temperature[1],
        gpu_throttle_reasons="; ".join(sorted(frozenset().union(*seen))) if seen else None,
        gpu_energy_j=gpu_energy_j,
        cpu_utilisation_mean_share=mean_share,
        cpu_utilisation_max_share=max(mean_share, *loads),  # a busy process may let the sampler run too rarely
        cpu_energy_j=cpu_energy_j,
        process_rss_mean_bytes=int(rss[0] or 0),
        process_rss_max_bytes=int(rss[1] or 0),
    )


def _mean_max(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    known = [value for value in values if value is not None]
    return (sum(known) / len(known), max(known)) if known else (None, None)


def together(first: Telemetry, second: Telemetry) -> Telemetry:
    """Return what two windows of one rank give as one: means weighted by time, the larger maximum, energies added.

    What one of the two does not know is that of the other, but for energy, which both have to know.
    """
    both = (first, second)
    values = {declared.name: _together(declared.name, both) for declared in fields(Telemetry)}
    # a window that is too short for the load of a process gives its maximum no more than the mean
    loads = [x.cpu_utilisation_max_share for x in both if x.window_s >= SHORTEST_S]
    known = [load for load in (values["cpu_utilisation_mean_share"], *loads) if load is not None]
    return Telemetry(**values | {"cpu_utilisation_max_share": max(known, default=None)})


def _together(name: str, windows: Sequence[Telemetry]) -> Any:
    known = [(value, window.window_s) for window in windows if (value := getattr(window, name)) is not None]
    values = [value for value, _ in known]
    if name.endswith("_j"):
        return sum(values) if len(values) == len(windows) else None
    if name in ("window_s", "samples"):
        return sum(values)
    if not values:
        return None
    if name == "gpu_throttle_reasons":
        return "; ".join(sorted({reason for text in values for reason in text.split("; ") if reason}))
    if "_max_" in name:
        return max(values)
    mean = sum(value * window_s for value, window_s in known) / sum(window_s for _, window_s in known)
    return int(mean) if name.endswith("_bytes") else mean


def read_rapl(powercap: Path) -> dict[str, tuple[int, int]]:
    """Return socket -> (energy counter, value at which it wraps) in microjoules; empty where it is not readable.

    Only whole sockets (intel-rapl:N) are read: their parts are counted in them. Source: Linux power/powercap.rst.
    """
    counters = {}
    for socket in sorted(powercap.glob("intel-rapl:*")):
        if socket.name.count(":") == 1:
            try:
                energy, wrap = (int((socket / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
            except (OSError, ValueError):
                continue
            counters[socket.name] = energy, wrap
    return counters


def rapl_joules(start: dict[str, tuple[int, int]], end: dict[str, tuple[int, int]]) -> float | None:
    """Return the energy between two readings, each counter wrapping at most once; None without any."""
    both = start.keys() & end.keys()
    if not both:
        return None
    spent = (end[name][0] - start[name][0] + (end[name][1] if end[name][0] < start[name][0] else 0) for name in both)
    return sum(spent) / 1e6
