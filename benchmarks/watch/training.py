"""What the folder of a training run says of it: how far it is, its losses, and each of its ranks."""

import json
import os
import re
import socket
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paralab.errors import DataError
from paralab.records.reading import read
from paralab.records.tail import Tail
from paralab.training.goodput import RunProgress, read_progress
from paralab.training.lock import FILE as LOCK
from paralab.training.options import config_file, rows_file, usage_file

_RECENT = 20  # steps whose mean says how fast it goes
_SILENT_S = 60.0  # after which a run of another machine counts as silent


@dataclass(frozen=True)
class RankView:
    """One rank. steps: how many it has logged. step_time_s, data_share: means of its last steps. age_s: of its log."""

    rank: int
    steps: int
    step_time_s: float | None
    data_share: float | None
    memory_bytes: int | None
    age_s: float | None


@dataclass(frozen=True)
class TrainingView:
    """A training run at one moment.

    status: "starting", "training", "ended", "stopped", or what its row says of a failure. losses, validation: step and
    loss. samples_per_s: of the last steps.
    """

    folder: Path
    name: str
    status: str
    reason: str
    done: int
    total: int | None
    losses: Sequence[tuple[int, float]]
    validation: Sequence[tuple[int, float]]
    learning_rate: float | None
    grad_norm: float | None
    step_time_s: float | None
    samples_per_s: float | None
    restarts: int
    ranks: Sequence[RankView]

    @property
    def left_s(self) -> float | None:
        """Seconds until the last step, as fast as the last ones were; None where that is unknown."""
        if self.total is None or self.step_time_s is None or self.status != "training":
            return None
        return (self.total - self.done) * self.step_time_s

    @property
    def is_over(self) -> bool:
        return self.status not in ("starting", "training")


class TrainingFiles:
    """The files of a training run, read again at every look. Raises: DataError for a folder without such a run."""

    def __init__(self, folder: Path) -> None:
        if not any(path.exists() for path in (config_file(folder), folder / LOCK, rows_file(folder))):
            raise DataError(f"{folder} holds no training run: give the folder of --out, or the CSV file of a sweep")
        self.folder = folder
        self.logs: dict[int, Tail] = {}
        self.usage: dict[int, Tail] = {}
        self.validation = Tail(folder / "validation.jsonl")

    def look(self) -> TrainingView:
        """Return the run as it is now."""
        for path in (self.folder / "log").glob("rank*.jsonl"):
            if number := re.fullmatch(r"rank(\d+)\.jsonl", path.name):
                rank = int(number[1])
                self.logs.setdefault(rank, Tail(path))
                self.usage.setdefault(rank, Tail(usage_file(self.folder, rank)))
        for log in (*self.logs.values(), *self.usage.values(), self.validation):
            log.follow()
        options, far = _options(config_file(self.folder)), read_progress(self.folder)
        logs = {rank: log for rank, log in sorted(self.logs.items()) if far is None or rank < far.processes}
        steps = _steps(next(iter(logs.values()), None))
        status, reason = self._status(far)
        last = steps[-1] if steps else {}
        step_time_s = _mean([_number(step, "step_time_s") for step in steps[-_RECENT:]])
        return TrainingView(
            folder=self.folder,
            name=_name(options),
            status=status,
            reason=reason,
            done=max(far.step if far else 0, int(last.get("step", -1)) + 1),
            total=_total(options),
            losses=_losses(steps, "step", 1),
            validation=_losses(self.validation.records, "step", 0),
            learning_rate=_number(last, "learning_rate"),
            grad_norm=_number(last, "grad_norm"),
            step_time_s=step_time_s,
            samples_per_s=_over(_number(last, "samples"), step_time_s),
            restarts=far.restarts if far else 0,
            ranks=[_rank_view(rank, log, self.usage[rank]) for rank, log in logs.items()],
        )

    def _status(self, far: RunProgress | None) -> tuple[str, str]:
        if is_held(
            self.folder / LOCK, written_s=max((log.written_s or 0.0 for log in self.logs.values()), default=0.0)
        ):
            return ("training" if far is not None and not far.ended else "starting"), ""
        try:
            rows = read(rows_file(self.folder)) if rows_file(self.folder).exists() else []
        except DataError as error:
            return "stopped", str(error)
        if rows and (far is None or far.ended or rows[-1].status not in ("ok", None)):
            status = rows[-1].status
            return ("ended" if status == "ok" else status or "ended"), rows[-1].reason or ""
        return "stopped", "no process of it is left, and no row: paralab train --resume goes on"


def is_held(lock: Path, *, written_s: float) -> bool:
    """Return whether the process that took a folder is there: seen on its own machine, else by what was written last.

    written_s: when a log of the folder was last written, in seconds since the epoch.
    """
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        host, process = holder["host"], int(holder["process"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    if host == socket.gethostname():
        return is_alive(process)
    return time.time() - max(written_s, lock.stat().st_mtime) < _SILENT_S


def is_alive(process: int) -> bool:
    """Return whether this machine has a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _options(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _name(options: dict[str, Any]) -> str:
    """Name a run as it names itself: model, size, layout, batch, precision."""
    batch = f"{options['global_batch_size']} samples a step" if "global_batch_size" in options else ""
    parts = [" ".join(str(options[key]) for key in ("model", "size") if key in options)]
    parts += [str(options.get(key, "")) for key in ("data", "layout")] + [batch, str(options.get("precision", ""))]
    return ", ".join(filter(None, parts)) or "unknown"


def _total(options: dict[str, Any]) -> int | None:
    steps, warmup = options.get("steps"), options.get("warmup", 0)
    return steps + warmup if isinstance(steps, int) and isinstance(warmup, int) else None


def _steps(log: Tail | None) -> list[dict[str, Any]]:
    return [record for record in log.records if record.get("record") == "step"] if log else []


def _losses(records: Sequence[dict[str, Any]], of: str, add: int) -> list[tuple[int, float]]:
    found = [(record.get(of), _number(record, "loss")) for record in records]
    return [(step + add, loss) for step, loss in found if isinstance(step, int) and loss is not None]


def _rank_view(rank: int, log: Tail, usage: Tail) -> RankView:
    recent = _steps(log)
    taken_s = _mean([_number(step, "step_time_s") for step in recent[-_RECENT:]])
    waited_s = _mean([_number(step, "data_wait_s") for step in recent[-_RECENT:]])
    memory = [bytes_ for bytes_ in map(_memory_bytes, usage.records) if bytes_]
    return RankView(
        rank=rank,
        steps=len(recent),
        step_time_s=taken_s,
        data_share=_over(waited_s, taken_s),
        memory_bytes=memory[-1] if memory else None,
        age_s=time.time() - log.written_s if log.written_s else None,
    )


def _memory_bytes(record: dict[str, Any]) -> int | None:
    """Return the peak of a rank so far: of its GPU, or else of its process."""
    found = record.get("device_peak_bytes") or record.get("process_peak_bytes")
    return found if isinstance(found, int) else None


def _number(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    try:
        return float(value) if value is not None else None
    except (TypeError, ValueError):
        return None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _over(number: float | None, by: float | None) -> float | None:
    return number / by if number is not None and by else None
