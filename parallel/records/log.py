"""The log of one rank: its steps, pipeline passes and memory, one JSON object a line."""

import json
import math
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from paralab.console.outputs import write_all
from paralab.errors import DataError, WriteError
from paralab.measure.span import SpanRecord
from paralab.measure.telemetry import Telemetry
from paralab.records.kinds import field_types, value_kind


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step of one rank."""

    step: int
    loss: float | None = None  # mean over the global batch
    grad_norm: float | None = None  # before clipping
    learning_rate: float | None = None
    step_time_s: float | None = None
    data_wait_s: float | None = None
    samples: int | None = None  # in the global batch
    measured: bool | None = None  # False while warming up


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Memory of one rank at its peak."""

    rank: int
    parameters_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_bytes: int | None = None
    activations_bytes: int | None = None
    buffers_bytes: int | None = None
    other_bytes: int | None = None
    process_peak_bytes: int | None = None
    device_peak_bytes: int | None = None  # allocated on a GPU


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """Where the time of one step of one rank went. The step is not timed."""

    step: int
    rank: int
    compute_s: float
    data_s: float
    exposed_s: float
    host_s: float | None = None  # of a GPU
    parts_json: str | None = None  # seconds of all parts, with waiting by mesh axis: as the column step_parts_json


@dataclass(frozen=True, kw_only=True)
class TelemetryRecord(Telemetry):
    """What one rank used over `steps` steps of training, of which `step` is the last."""

    step: int
    steps: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """Root mean squares of one parameter in one step, over all ranks: equal on each of them."""

    step: int
    name: str  # as one process has it
    numel: int  # numbers that it has
    weight_rms: float  # before the update
    gradient_rms: float  # before clipping
    update_rms: float


LogRecord = StepRecord | SpanRecord | MemoryRecord | SplitRecord | TelemetryRecord | LayerRecord
_LOG_RECORDS = {
    "step": StepRecord,
    "span": SpanRecord,
    "memory": MemoryRecord,
    "split": SplitRecord,
    "telemetry": TelemetryRecord,
    "layer": LayerRecord,
}
_LOG_NAMES = {kind: name for name, kind in _LOG_RECORDS.items()}


class LogWriter(Protocol):
    """Where a rank puts its steps, pipeline spans and memory."""

    def write(self, record: LogRecord) -> None: ...

    def close(self) -> None: ...


class StepLog:
    """Append records to a file, one JSON object a line. A line reaches the file when it is written.

    What an earlier process that died left unfinished at the end of the file is cut off.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
        self._path, self._file = path, open(path, "ab", buffering=0)

    def write(self, record: LogRecord) -> None:
        """Add a line. Raises: WriteError when it cannot be written."""
        cells = {name: _json_value(value) for name, value in asdict(record).items() if value is not None}
        line = json.dumps({"record": _LOG_NAMES[type(record)], **cells}, allow_nan=False) + "\n"
        try:
            write_all(self._file, line.encode())
        except OSError as error:
            raise WriteError(f"{self._path} cannot be written ({error.strerror}): make room there") from error

    def close(self) -> None:
        self._file.close()


def read_log(path: str | Path) -> list[LogRecord]:
    """Return the records of one rank's log. A last line that was not finished is skipped with a warning.

    Raises: DataError when the file is missing or a line has the wrong form.
    """
    try:
        *lines, rest = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a log that a run wrote") from None
    if rest:
        warnings.warn(f"{path}: the last line is not finished and was skipped", stacklevel=2)
    return [_log_record(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line]


def read_steps(path: str | Path) -> list[StepRecord]:
    """Return the steps in one rank's log, in the order they were taken. Raises: DataError, as `read_log`."""
    return [record for record in read_log(path) if isinstance(record, StepRecord)]


def read_losses(run: Path) -> dict[int, float]:
    """Return the loss of each step of a training run, by its folder; of a step that was taken again, the last one.

    Raises: DataError, as `read_log`.
    """
    return {x.step: x.loss for x in read_steps(run / "log" / "rank0.jsonl") if x.loss is not None}


def read_layers(path: str | Path) -> list[LayerRecord]:
    """Return the root mean squares of parameters in one rank's log, step by step. Raises: DataError, as `read_log`."""
    return [record for record in read_log(path) if isinstance(record, LayerRecord)]


def _log_record(line: str, place: str) -> LogRecord:
    try:
        cells = json.loads(line)
        kind = _LOG_RECORDS[cells.pop("record")]
        known = field_types(kind)
        return kind(**{name: _checked(value, known[name]) for name, value in cells.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{place} is not a record of this version ({error!r}): remove the line") from None


def _checked(value: object, expected: type) -> object:
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        return float(value)
    _, choices = value_kind(expected)
    if (value not in choices) if choices else (type(value) is not expected):
        raise ValueError(f"{value!r} where {expected} is needed")
    return value


def _json_value(value: object) -> object:
    """Return a value that strict JSON can hold: a number that is not finite becomes its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def set_aside(path: str | Path, *, first_step: int, into: Path) -> int:
    """Move the lines of a JSON Lines file whose step is `first_step` or later to a file of its name in another folder.

    They are of a start that came further than the checkpoint from which the run goes on, or of one that left none. So
    are lines without a step when everything is taken again, and those that cannot be read. Returns: how many.
    """
    path = Path(path)
    if not path.exists():
        return 0
    kept: list[bytes] = []
    moved: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        (kept if _is_before(line, first_step) else moved).append(line)
    if not moved:
        return 0
    into.mkdir(parents=True, exist_ok=True)
    with open(into / path.name, "ab") as file:
        file.writelines(line.rstrip(b"\n") + b"\n" for line in moved)
        file.flush()
        os.fsync(file.fileno())
    rewritten = path.with_name(f"{path.name}.tmp")
    rewritten.write_bytes(b"".join(kept))
    os.replace(rewritten, path)
    return len(moved)


def _is_before(line: bytes, first_step: int) -> bool:
    """Return whether a whole line is of a step before this one; one that belongs to no step is, unless all begins."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or not line.endswith(b"\n"):
        return False
    step = values.get("step", first_step - 1 if first_step > 0 else first_step)
    return type(step) is int and step < first_step
