"""What a rank uses while it trains: the instrument of `paralab run`, read at every line of metrics.

Evaluation and saving are left out, and so is the first step, in which processes that load data start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from paralab.console.quantities import size_text
from paralab.measure import memory
from paralab.measure.nvml import cuda_uuid
from paralab.measure.telemetry import Sampler, Telemetry, together
from paralab.processes.mesh import Mesh
from paralab.records.log import LogWriter, TelemetryRecord
from paralab.records.telemetry import largest_known, telemetry_columns

LEAST_S = 1.0  # of steps before there is a record of them


class Meter:
    """Telemetry of one rank. total: of all steps that it measured. steps: how many these are."""

    def __init__(self, mesh: Mesh, *, rank: int) -> None:
        cuda = mesh.device.type == "cuda"
        self.sampler = Sampler(gpu_uuid=cuda_uuid(mesh.device.index) if cuda else None)
        self.rank, self.is_open = rank, False
        self.total: Telemetry | None = None
        self.steps = 0
        self._since: Telemetry | None = None  # the last record
        self._steps_since = self._steps = 0

    def step_taken(self) -> None:
        """Take note of a step; the first one opens the window, and does not count."""
        if self.is_open:
            self._steps += 1
        else:
            self.sampler.start_window()
            self.is_open = True

    def goes_on(self) -> None:
        """Leave out what came since the last reading."""
        if self.is_open:
            self.sampler.lap()

    def read(self, step: int, *, log: LogWriter, is_last: bool = False) -> TelemetryRecord | None:
        """Read what the steps since the last reading used. Returns: the record of the log, where one is due.

        step: the last of these steps. is_last: whether no more come.
        """
        if self._steps:
            seen = self.sampler.lap()
            self._since = seen if self._since is None else together(self._since, seen)
            self._steps_since += self._steps
            self._steps = 0
        if self._since is None or not (is_last or self._since.window_s >= LEAST_S):
            return None
        record = TelemetryRecord(step=step, steps=self._steps_since, rank=self.rank, **vars(self._since))
        log.write(record)
        self.total = self._since if self.total is None else together(self.total, self._since)
        self.steps += self._steps_since
        self._since, self._steps_since = None, 0
        return record

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_open:
            self.sampler.stop_window()
            self.is_open = False


@dataclass(frozen=True)
class Used:
    """What a run used, over all of its ranks. columns: those of its row."""

    columns: Mapping[str, Any]

    def __str__(self) -> str:
        found = self.columns
        gpu, cpu = (_share(found, name) for name in ("gpu", "cpu"))
        size, power = _size(found["gpu_used_max_bytes"]), _at_most(found, "gpu_power", "w", "{:.0f} W")
        parts = [f"GPU {gpu}" if gpu else "", f"{size} in use on it" if size else "", power or ""]
        resident, energy = _size(found["process_peak_bytes"]), found["energy_j"]
        parts += [f"CPU {cpu} of the cores allowed" if cpu else "", f"{resident} in a process" if resident else ""]
        source = "GPUs" if found["energy_source"] == "nvml" else "processors"
        parts.append(f"energy of the {source} {energy:,.0f} J" if energy is not None else "energy unknown")
        return ", ".join(filter(None, parts))


def used_by_all(mesh: Mesh, meter: Meter, *, nodes: int, tokens_per_step: int | None) -> Used:
    """Put together what all ranks used. Collective. tokens_per_step: of a model of texts."""
    mine = meter.total, memory.process_peak_bytes(), memory.device_peak_bytes(mesh.device)
    ranks: list[Any] = [mine]
    if mesh.world is not None:
        ranks *= mesh.layout.world_size
        dist.all_gather_object(ranks, mine, group=mesh.world)
    seen, processes, devices = zip(*ranks, strict=True)
    allocated, reserved = zip(*devices, strict=True)
    tokens = meter.steps * tokens_per_step if tokens_per_step is not None else None
    return Used(
        telemetry_columns([found for found in seen if found is not None], nodes=nodes, tokens=tokens)
        | {
            "process_peak_bytes": largest_known(processes),
            "gpu_allocated_peak_bytes": largest_known(allocated),
            "gpu_reserved_peak_bytes": largest_known(reserved),
        }
    )


def _share(columns: Mapping[str, Any], device: str) -> str | None:
    return _at_most(columns, f"{device}_utilisation", "share", "{:.0%}")


def _at_most(columns: Mapping[str, Any], kind: str, unit: str, form: str) -> str | None:
    mean, most = columns[f"{kind}_mean_{unit}"], columns[f"{kind}_max_{unit}"]
    return f"{form.format(mean)} (at most {form.format(most)})" if mean is not None else None


def _size(size_bytes: int | None) -> str | None:
    return size_text(size_bytes) if size_bytes is not None else None
