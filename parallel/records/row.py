"""What one run leaves behind: a row in a CSV file, and beside it one log of typed lines for each rank.

`RunRecord` is the only schema of results. The header of a CSV file is its fields in order, and the types of the
cells are its annotations. `SCHEMA` numbers the set of columns and each row holds it: files of an older schema are read
(what they lack is unknown), those of a newer one are refused. Units are in the names, and an empty cell means unknown.
Over ranks, times and memory are the maximum, utilisation is the mean, and throughput is that of the global batch over
the slowest rank. A share is a number from 0 to 1.

Text cells are made harmless and stay exact. Control characters are written as `\\u000a`, a backslash as two, so
one run is always one line; text that a spreadsheet would run as a formula (it begins with = + - @) gets a leading
apostrophe, and so does text that is empty or begins with an apostrophe itself. Reading undoes both.
"""

import csv
import fcntl
import io
import json
import math
import operator
import os
import re
import tempfile
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from parallel.console.outputs import check_writable
from parallel.errors import DataError, Status, UsageError, WriteError
from parallel.measure.span import SpanRecord
from parallel.records import sheet
from parallel.records.sheet import Line


@dataclass(frozen=True)
class Change:
    """What one schema changed in the columns of the one before it."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)  # old name: new name


# The first six sets of columns were published without being counted: their rows say 1. From the sixth on every change
# of the columns is a line here, and a test holds the line against the columns.
UNCOUNTED, COUNTED_FROM = 1, 6
_WIRE = [f"comm_{axis}_{kind}" for axis in ("dp", "tp", "pp", "world") for kind in ("", "predicted_")]
CHANGES: dict[int, Change] = {
    # what was called wire bytes were those of a ring, whatever the backend sent
    7: Change(
        added=tuple(f"{name}sent_bytes" for name in _WIRE),
        renamed={f"{name}wire_bytes": f"{name}ring_bytes" for name in _WIRE},
    ),
    8: Change(added=("memory_buffers_bytes",)),  # until then in memory_other_bytes or memory_activations_bytes
    9: Change(added=("slowest_rank",)),
    10: Change(added=("parity_scope", "parity_result")),  # until then parameter_difference_max was in learning rates
    11: Change(added=("n_classes",)),
}
RENAMED = {old: new for number in sorted(CHANGES) for old, new in CHANGES[number].renamed.items()}
SCHEMA = max(CHANGES, default=COUNTED_FROM)

Device = Literal["cpu", "cuda"]

WHOLE, NOT_PROVEN = "whole", "not proven: the reference does not fit"  # scopes of parity; else so much of so much
COMM_AXES = ("dp", "tp", "pp", "world")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")


def column(meaning: str, *, default: Any = None, required: bool = False) -> Any:
    """Declare a column: what is in its cells, beyond what its name says; `docs/columns.md` is made from it."""
    return field(metadata={"meaning": meaning}) if required else field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, failed ones included. None is unknown.

    Of communication, payload is the size of the tensor of the call (the gathered one, the one before scattering); ring
    is what a ring algorithm sends for it; sent is what leaves the rank with its backend (`parallel.axes.forms`), by
    ring algorithms where that was not measured (NCCL).
    """

    schema: int = column("number of the set of columns", default=SCHEMA)
    run_id: str = column("name of the run, also of its logs", required=True)
    group: str | None = column("sweep or experiment that the run belongs to")
    repeat: int | None = column("number of the repeat within its group")
    started_at: str = column("ISO 8601, UTC", required=True)
    status: Status = column("how the run ended", required=True)
    failed_rank: int | None = column("the first rank to fail")
    failed_step: int | None = column("step in which it failed")
    reason: str | None = column("why it failed")
    command: str | None = column("runs the same case again")
    restarts: int | None = column("times that a launcher of several nodes started the run again")
    wall_s: float | None = column("from the command to the end")
    goodput_share: float | None = column("time in steps that were kept / wall time")
    recovery_s: float | None = column("from the last step before each interruption to the next one, in all")
    steps_lost: int | None = column("steps taken again, from the last checkpoint on")

    strategy_requested: str = column("strategy that was typed, else the one chosen", required=True)
    strategy: str | None = column("the one that was typed where the layout is its, else what the layout divides")
    layout_requested: str | None = column("layout that was typed")
    layout: str | None = column("layout that ran")
    engine_requested: str | None = column("engine that was typed")
    engine: str | None = column("engine that ran the steps")
    launcher: str | None = column("what started the processes")
    device: Device | None = column("kind of device")
    backend: str | None = column("backend of the process group")
    world_size_requested: int | None = column("processes that were typed")
    world_size: int | None = column("processes that ran")
    nodes: int | None = column("machines")
    dp: int | None = column("data ranks")
    tp: int | None = column("tensor ranks")
    pp: int | None = column("pipeline ranks")
    zero_requested: int | None = column("ZeRO stage of the layout or strategy that was typed")
    zero: int | None = column("ZeRO stage that ran")
    schedule: str | None = column("pipeline schedule")
    micro_batches: int | None = column("micro-batches of a pipeline")
    sequence_parallel: bool | None = column("whether tensor ranks split activations along the sequence")
    precision_requested: str | None = column("precision that was typed")
    precision: str | None = column("precision of the arithmetic")
    checkpointing: str | None = column("blocks whose activations are computed again: none, full, or every n-th")
    compile: str | None = column("mode of torch.compile, or none")
    offload: str | None = column("what lives on the host, or none")
    channels_last: bool | None = column("whether a model of images has its channels last")
    loader_workers: int | None = column("processes that prepare batches, per rank")
    pin_memory: bool | None = column("whether batches are in page-locked memory")
    non_blocking: bool | None = column("whether batches are copied while computing")
    cast_on_device: bool | None = column("whether batches are copied as they are stored and converted on the device")

    model: str = column("name of the model", required=True)
    size: str | None = column("preset or written size")
    parameters: int | None = column("of the whole model; a shared one counts once")
    unit: Literal["tokens", "images", "points"] | None = column("what throughput counts")
    sequence_length: int | None = column("tokens of a sample")
    image_size_px: int | None = column("height and width of an image")
    n_classes: int | None = column("classes of a model of labelled images")
    norm: str | None = column("normalisation, of a model that has a choice")
    micro_batch_size: int | None = column("samples in one forward pass of one rank")
    accumulation: int | None = column("backward passes in one optimizer step")
    global_batch_size: int | None = column("samples in one optimizer step")
    optimizer: str | None = column("name of the optimizer")
    seed: int | None = column("of weights, shuffling and noise")
    data: str | None = column("data set")
    data_sha256: str | None = column("hash of the content of the training data")

    startup_s: float | None = column("from the command to the first step")
    compile_s: float | None = column("in torch.compile, for parity as well; 0 where nothing is compiled")
    warmup_steps: int | None = column("steps left out of the timing")
    warmup_rule: str | None = column("how the cut was chosen")
    measured_steps: int | None = column("steps that were timed")
    steady: bool | None = column("whether the timed steps show no trend")
    step_time_p50_s: float | None = column("median of a step, of the slowest rank in each")
    step_time_p50_low_s: float | None = column("lower end of the 95% interval of the median")
    step_time_p50_high_s: float | None = column("upper end of the 95% interval of the median")
    step_time_p95_s: float | None = column("95th percentile of a step")
    step_time_p99_s: float | None = column("99th percentile of a step")
    step_time_mad_s: float | None = column("median absolute deviation of a step from the median")
    samples_per_s: float | None = column("samples of the global batch over the median step")
    samples_per_s_per_device: float | None = column("the same, for each device")
    tokens_per_s: float | None = column("tokens of the global batch over the median step")
    tokens_per_s_per_device: float | None = column("the same, for each device")
    data_wait_share: float | None = column("of the time, in the loader; a GPU may have work meanwhile")
    exposed_comm_share: float | None = column("of the time, waiting for communication, mean over ranks; 0 alone")
    straggler_ratio: float | None = column(
        "own time of the slowest rank over the median of the others (up to schema 8: of all)"
    )
    slowest_rank: int | None = column("the one that the others wait for")

    model_tflops_per_device: float | None = column("what the model needs by its formula, over the time")
    flop_formula: str | None = column("name of the formula that counts the model's operations")
    peak_tflops_per_device: float | None = column("the most that a device can do in this precision")
    peak_source: str | None = column("datasheet or measured, and whether the run exceeded it: then no share is known")
    mfu: float | None = column("model FLOP utilisation: model_tflops_per_device over the peak")
    hfu: float | None = column("the same with what activation checkpointing computes again")
    energy_j: float | None = column("all devices, over all timed steps, those cut as warm-up included")
    energy_source: str | None = column("what counted the energy")
    gpu_utilisation_mean_share: float | None = column("of the time in which a kernel ran, mean")
    gpu_utilisation_max_share: float | None = column("of the time in which a kernel ran, most")
    gpu_power_mean_w: float | None = column("power of a GPU, mean")
    gpu_power_max_w: float | None = column("power of a GPU, most")
    gpu_clock_mean_mhz: float | None = column("clock of a GPU, mean")
    gpu_clock_max_mhz: float | None = column("clock of a GPU, most")
    gpu_temperature_mean_c: float | None = column("temperature of a GPU, mean")
    gpu_temperature_max_c: float | None = column("temperature of a GPU, most")
    gpu_power_limit_w: float | None = column("limit that the driver holds the power to")
    gpu_throttle_reasons: str | None = column('why clocks were held down, joined by "; "')
    cpu_utilisation_mean_share: float | None = column("of the cores allowed, by all ranks of a node, mean over nodes")
    cpu_utilisation_max_share: float | None = column("at most: the sum of what each rank used when it used most")
    throttled: bool | None = column("whether clocks were held down")

    gpu_allocated_peak_bytes: int | None = column("most that tensors took of a GPU")
    gpu_reserved_peak_bytes: int | None = column("most that torch held of a GPU")
    gpu_used_mean_bytes: int | None = column("of the whole device, as the driver counts, mean")
    gpu_used_max_bytes: int | None = column("of the whole device, as the driver counts, most")
    memory_parameters_bytes: int | None = column("parameters, when all categories together are largest")
    memory_gradients_bytes: int | None = column("gradients, at that moment")
    memory_optimizer_bytes: int | None = column("states of the optimizer, at that moment")
    memory_activations_bytes: int | None = column("activations, inputs and temporary tensors, at that moment")
    memory_buffers_bytes: int | None = column("buckets, gathered parameters and what is received, at that moment")
    memory_other_bytes: int | None = column("buffers of modules, at that moment")
    memory_tensors_peak_bytes: int | None = column("all categories at the moment when their sum is largest")
    process_peak_bytes: int | None = column("most resident memory of a process")
    memory_state_peak_bytes: int | None = column("the most that parameters, gradients and optimizer took together")
    predicted_state_bytes: int | None = column("the same, by formula")

    comm_dp_calls: int | None = column("collectives over the data axis")
    comm_dp_payload_bytes: int | None = column("payload over the data axis")
    comm_dp_ring_bytes: float | None = column("that a ring algorithm sends over the data axis")
    comm_dp_predicted_ring_bytes: float | None = column("the same, predicted")
    comm_dp_sent_bytes: float | None = column("that leave the rank over the data axis")
    comm_dp_predicted_sent_bytes: float | None = column("the same, predicted")
    comm_tp_calls: int | None = column("collectives over the tensor axis")
    comm_tp_payload_bytes: int | None = column("payload over the tensor axis")
    comm_tp_ring_bytes: float | None = column("that a ring algorithm sends over the tensor axis")
    comm_tp_predicted_ring_bytes: float | None = column("the same, predicted")
    comm_tp_sent_bytes: float | None = column("that leave the rank over the tensor axis")
    comm_tp_predicted_sent_bytes: float | None = column("the same, predicted")
    comm_pp_calls: int | None = column("collectives over the pipeline axis")
    comm_pp_payload_bytes: int | None = column("payload over the pipeline axis")
    comm_pp_ring_bytes: float | None = column("that a ring algorithm sends over the pipeline axis")
    comm_pp_predicted_ring_bytes: float | None = column("the same, predicted")
    comm_pp_sent_bytes: float | None = column("that leave the rank over the pipeline axis")
    comm_pp_predicted_sent_bytes: float | None = column("the same, predicted")
    comm_world_calls: int | None = column("collectives over the group of all ranks")
    comm_world_payload_bytes: int | None = column("payload over the group of all ranks")
    comm_world_ring_bytes: float | None = column("that a ring algorithm sends over the group of all ranks")
    comm_world_predicted_ring_bytes: float | None = column("the same, predicted")
    comm_world_sent_bytes: float | None = column("that leave the rank over the group of all ranks")
    comm_world_predicted_sent_bytes: float | None = column("the same, predicted")
    comm_all_reduce_calls: int | None = column("calls of all_reduce, over all axes")
    comm_all_reduce_payload_bytes: int | None = column("payload of all_reduce, over all axes")
    comm_all_gather_calls: int | None = column("calls of all_gather, over all axes")
    comm_all_gather_payload_bytes: int | None = column("payload of all_gather, over all axes")
    comm_reduce_scatter_calls: int | None = column("calls of reduce_scatter, over all axes")
    comm_reduce_scatter_payload_bytes: int | None = column("payload of reduce_scatter, over all axes")
    comm_all_to_all_calls: int | None = column("calls of all_to_all, over all axes")
    comm_all_to_all_payload_bytes: int | None = column("payload of all_to_all, over all axes")
    comm_broadcast_calls: int | None = column("calls of broadcast, over all axes")
    comm_broadcast_payload_bytes: int | None = column("payload of broadcast, over all axes")
    comm_send_calls: int | None = column("calls of send, over all axes")
    comm_send_payload_bytes: int | None = column("payload of send, over all axes")
    comm_detail_json: str | None = column('{axis: {collective: {"calls", "payload_bytes"}}}: calls and payload by both')

    bubble_share: float | None = column("of the time, in which pipeline ranks are idle, measured")
    bubble_theory_share: float | None = column("the same, of the schedule with passes of equal length")

    loss_first: float | None = column("of the first step, mean over the global batch")
    loss_last: float | None = column("of the last step")
    loss_difference_max: float | None = column("relative, to the run of one process with the same work")
    grad_norm_last: float | None = column("norm of the gradient over all parameters in the last step, before clipping")
    grad_norm_difference_max: float | None = column("relative, to the run of one process")
    parameter_difference_max: float | None = column(
        "over what the reference moved it by (up to schema 9: learning rates)"
    )
    parity: bool | None = column("whether all three are within their tolerance")
    parity_scope: str | None = column("how much of the run was compared: whole, or so many blocks and samples of all")
    parity_result: str | None = column("in words: passed, or what differs, by how much and how much is allowed")
    parity_precision: str | None = column("precision of the arithmetic while they were compared")

    git_commit: str | None = column("commit of the checkout")
    git_dirty: bool | None = column("whether files differed from the commit")
    paralab_version: str | None = column("version of paralab")
    python_version: str | None = column("version of Python")
    torch_version: str | None = column("version of torch")
    deepspeed_version: str | None = column("version of DeepSpeed")
    accelerate_version: str | None = column("version of Accelerate")
    transformers_version: str | None = column("version of transformers")
    cuda_version: str | None = column("version of CUDA that torch was built with")
    nccl_version: str | None = column("version of NCCL")
    driver_version: str | None = column("version of the GPU driver")
    gpu_name: str | None = column("name of the GPU")
    gpu_count: int | None = column("GPUs of the machine")
    cpu_model: str | None = column("name of the processor")
    cores_allowed: float | None = column("by the control group and the affinity mask")
    link_mbit_per_s: float | None = column("of each node, where paralab cluster shaped it")
    threads: int | None = column("CPU threads of one rank")
    host_hash: str | None = column("tells machines apart without naming them")


# the column that each group begins with: what the group is about
GROUPS = {
    "schema": "identity",
    "strategy_requested": "requested and realised",
    "model": "work",
    "startup_s": "timing",
    "model_tflops_per_device": "efficiency",
    "gpu_allocated_peak_bytes": "memory",
    "comm_dp_calls": "communication of the rank that sends most, in one optimizer step",
    "bubble_share": "pipeline",
    "loss_first": "correctness",
    "git_commit": "environment",
}
_REQUIRED = ("schema", *(found.name for found in fields(RunRecord) if found.default is MISSING))


def parity_words(records: Sequence[RunRecord]) -> str:
    """Say what is known of the parity of runs of one kind, and on how much of them where that is not all.

    One that failed speaks for all; else the one that was proved on most. What was proved on all says `passed`.
    """
    checked = [record for record in records if record.parity is not None]
    if not checked:
        return next((record.parity_result for record in records if record.parity_result), "not checked")
    passed = all(record.parity for record in checked)
    scopes = [record.parity_scope or WHOLE for record in checked if record.parity is passed]
    scope = WHOLE if WHOLE in scopes else scopes[0]
    return ("passed" if passed else "FAILED") + ("" if scope == WHOLE else f" on {scope}")


def sent_bytes(record: RunRecord) -> float | None:
    """Return what leaves the rank that sends most in one step, over all axes; None where it was not recorded."""
    if record.world_size == 1:
        return 0.0
    sizes = [getattr(record, f"comm_{axis}_sent_bytes") for axis in COMM_AXES]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


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


LogRecord = StepRecord | SpanRecord | MemoryRecord
_LOG_RECORDS = {"step": StepRecord, "span": SpanRecord, "memory": MemoryRecord}
_LOG_NAMES = {kind: name for name, kind in _LOG_RECORDS.items()}


_ELSEWHERE = "write to another file with --out NEW.csv"


def header() -> list[str]:
    """Return the columns of a CSV file, in order."""
    return [field.name for field in fields(RunRecord)]


def columns_of(number: int) -> set[str]:
    """Return the columns of a schema from `COUNTED_FROM` on, by their names in that schema."""
    columns = set(header())
    for later in sorted((n for n in CHANGES if n > number), reverse=True):
        change = CHANGES[later]
        old_names = {new: old for old, new in change.renamed.items()}
        columns = {old_names.get(name, name) for name in columns - set(change.added)} | set(change.removed)
    return columns


def check_appendable(path: str | Path, *, advice: str = _ELSEWHERE) -> None:
    """Raise UsageError when rows could not be added to a file, before there is anything to lose.

    advice: what to do about a file that is of another form.
    """
    path = Path(path)
    check_writable(path, make_folders=True)
    if path.exists() and (content := path.read_bytes()):
        _check_header(content, path, advice=advice)
        read(path)


def append(path: str | Path, record: RunRecord) -> None:
    """Add one row to a CSV file, creating it with its header; safe with other writers at the same time.

    What a writer that died left unfinished at the end of the file is cut off first. Returns when the row is on disk.

    Raises: UsageError when the file has another header, or was saved by another program; WriteError when the row cannot
    be written, as when the disk is full: it is kept among the temporary files, if there is room.
    """
    path = Path(path)
    row = _line(_encode(value, name, RunRecord) for name, value in vars(record).items())
    try:
        _append(path, row)
    except OSError as error:
        kept = _kept(_line(header()) + row, f"paralab-{record.run_id}.csv")
        where = f", and the row is kept in {kept}" if kept else ""
        raise WriteError(f"{path} cannot be written ({error.strerror}): make room there{where}") from error


def _append(path: Path, row: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        content = file.read()
        _check_header(content, path)
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        file.seek(len(whole))
        try:
            _write_all(file, row if whole else _line(header()) + row)
            os.fsync(file.fileno())
        except OSError:
            file.truncate(len(whole))  # no part of a row stays
            raise


def _kept(content: bytes, name: str) -> Path | None:
    """Write a file among the temporary ones; None where there is no room for it either.

    One that is there stays: the row of the failure, which follows, does not take the place of what was measured.
    """
    path = Path(tempfile.gettempdir()) / name
    try:
        with open(path, "xb") as file:
            file.write(content)
    except FileExistsError:
        return path
    except OSError:
        path.unlink(missing_ok=True)
        return None
    return path


def read(path: str | Path) -> list[RunRecord]:
    """Return the rows of a CSV file: see `read_lines`."""
    return [record for _, record in read_lines(path)]


def read_lines(path: str | Path) -> list[tuple[int, RunRecord]]:
    """Return the rows of a CSV file, each with its line, counted from 1.

    Files of an older schema are read, and files as spreadsheets save them (`parallel.records.sheet`).

    Warns of a last line that was not finished, of rows without a filled cell and of columns that have no place here;
    these are passed over.

    Raises: UsageError when it is no file of results, or one of a newer schema; DataError when it is missing, a cell
    has the wrong form, or a row does not say the schema of the columns.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
    except OSError as error:
        problem = error.strerror
        raise DataError(f"{path} cannot be read ({problem}): give a CSV file that `paralab bench` wrote") from None
    table = sheet.parse(content, path)
    if not table.finished:
        warnings.warn(f"{path}: the last line is not finished and was skipped", stacklevel=2)
    if not table.columns and _line(header()).startswith(content):
        return []
    reader = _Reader(path, table.columns)
    rows = [(line.number, reader.row(line)) for line in table.lines if not line.blank]
    for said in (reader.passed_over(), _blank(table.lines)):
        if said:
            warnings.warn(f"{path}: {said}", stacklevel=2)
    return rows


def log_path(csv_path: str | Path, run_id: str, rank: int) -> Path:
    """Return where one rank of a run keeps its log: a folder beside the CSV file that is named like it."""
    return Path(csv_path).with_suffix("") / f"{safe_name(run_id)}.rank{rank}.jsonl"


def log_paths(csv_path: str | Path, run_id: str) -> list[Path]:
    """Return the logs of a run that exist, in order of rank."""
    name = safe_name(run_id)
    found = Path(csv_path).with_suffix("").glob("*.jsonl")
    ranks = {path: re.fullmatch(rf"{re.escape(name)}\.rank(\d+)\.jsonl", path.name) for path in found}
    return [path for _, path in sorted((int(match[1]), path) for path, match in ranks.items() if match)]


def safe_name(text: str) -> str:
    """Return a file name for any text: itself where that is harmless, otherwise cleaned and told apart by a hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text):
        return text
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60]
    return f"{cleaned or 'run'}-{sha256(text.encode(errors='surrogatepass')).hexdigest()[:10]}"


def one_line(text: str) -> str:
    """Return text with its control characters and backslashes escaped: it can move no cursor and start no line."""
    return _SPECIAL.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", text)


def harmless(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet runs as a formula (see the top of this file)."""
    text = one_line(text)
    return f"'{text}" if not text or text.startswith(_FORMULA) else text


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
            _write_all(self._file, line.encode())
        except OSError as error:
            raise WriteError(f"{self._path} cannot be written ({error.strerror}): make room there") from error

    def close(self) -> None:
        self._file.close()


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


def _log_record(line: str, place: str) -> LogRecord:
    try:
        cells = json.loads(line)
        kind = _LOG_RECORDS[cells.pop("record")]
        known = _types(kind)
        return kind(**{name: _checked(value, known[name]) for name, value in cells.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{place} is not a record of this version ({error!r}): remove the line") from None


def _checked(value: object, expected: type) -> object:
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        return float(value)
    _, choices = _kind(expected)
    if (value not in choices) if choices else (type(value) is not expected):
        raise ValueError(f"{value!r} where {expected} is needed")
    return value


def _json_value(value: object) -> object:
    """Return a value that strict JSON can hold: a number that is not finite becomes its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a record, without the `| None`."""
    hints = get_type_hints(kind)
    return {field.name: _without_none(hints[field.name]) for field in fields(kind)}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _kind(hint: Any) -> tuple[type, Sequence[str]]:
    """Return the type behind an annotation and, where it is a Literal, the values that are allowed."""
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, ())


_SPECIAL = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "'")  # the wide forms count in some locales


def _encode(value: Any, name: str, kind: type) -> str:
    if value is None:
        return ""
    expected, choices = _kind(_types(kind)[name])
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r}: one of {', '.join(choices)} is needed")
    if expected is str:
        return harmless(value)
    if expected is bool:
        return "true" if value else "false"
    return repr(operator.index(value)) if expected is int else repr(float(value))


def _decode(cell: str, name: str, kind: type) -> Any:
    if cell == "":
        return None
    expected, choices = _kind(_types(kind)[name])
    if expected is str:
        escaped = cell.removeprefix("'")
        text = _ESCAPE.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), escaped)
        if choices and text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is needed")
        return text
    if expected is bool:
        return {"true": True, "false": False}[cell.lower()]  # spreadsheets write TRUE
    if expected is int and re.fullmatch(r"-?\d+\.0", cell):  # as data frames write whole numbers beside empty cells
        cell = cell.removesuffix(".0")
    return expected(cell)


def _line(cells: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()


class _Reader:
    """Turns the lines of one file into records. Raises: UsageError when its columns are not those of results."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path, self._columns, self._known = path, columns, set(columns)
        if missing := [name for name in _REQUIRED if name not in self._known]:
            lacks = f"it lacks {_few(missing)}"
            raise UsageError(f"{path} has other columns than a result file ({lacks}): give one that `paralab` wrote")
        if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]} twice: remove one of them")
        self._names = [_present_name(name) for name in columns]  # None where this version has no place for it

    def row(self, line: Line) -> RunRecord:
        place = f"{self._path} line {line.number}"
        if line.cells == self._columns:
            raise DataError(f"{place} has the names of the columns again: remove the line")
        if len(line.cells) != len(self._columns):
            count = f"{len(line.cells)} cells, {len(self._columns)} are needed"
            raise DataError(f"{place} has {count}: correct the line or remove it")
        values = {}
        for name, cell in zip(self._names, line.cells, strict=True):
            if name is not None:
                values[name] = self._value(cell, name, place)
        self._check_schema(values["schema"], place)
        return RunRecord(**values)

    def _value(self, cell: str, name: str, place: str) -> Any:
        try:
            if cell == "" and name in _REQUIRED:
                raise ValueError("it cannot be empty")
            return _decode(cell, name, RunRecord)
        except (ValueError, KeyError) as error:
            why = "a decimal comma: save the file with decimal points" if _DECIMAL_COMMA.fullmatch(cell) else error
            raise DataError(f"{place}: {name} is {cell[:60]!r} ({why}): correct the cell") from None

    def _check_schema(self, number: int, place: str) -> None:
        """Raise where a row says another schema than the columns have."""
        if number > SCHEMA:
            written = f"written by a newer paralab: schema {number}, this one reads up to {SCHEMA}"
            raise UsageError(f"{place} was {written}: upgrade")
        if number == UNCOUNTED:
            late = self._known & (_ever_columns() - columns_of(COUNTED_FROM))
            wrong = f"has the later {_few(sorted(late))}" if late else ""
        elif number < COUNTED_FROM:
            wrong = "no version of paralab wrote that"
        else:
            missing, late = columns_of(number) - self._known, self._known & (_ever_columns() - columns_of(number))
            wrong = "; ".join(
                f"{verb} {_few(sorted(names))}" for verb, names in (("lacks", missing), ("has", late)) if names
            )
        if wrong:
            raise DataError(
                f"{place} says schema {number}, which does not fit the columns of the file ({wrong}): "
                "remove the line, or run its case again"
            )

    def passed_over(self) -> str:
        """Name the columns that were not read."""
        pairs = zip(self._columns, self._names, strict=True)
        extra = [column or "(without a name)" for column, name in pairs if name is None]
        return f"columns that this version does not know were passed over: {', '.join(extra)}" if extra else ""


def _present_name(column: str) -> str | None:
    while column in RENAMED:
        column = RENAMED[column]
    return column if column in _types(RunRecord) else None


def _ever_columns() -> set[str]:
    return set().union(*(columns_of(number) for number in range(COUNTED_FROM, SCHEMA + 1)))


def _blank(lines: Sequence[Line]) -> str:
    """Say which lines hold no value."""
    numbers = [str(line.number) for line in lines if line.blank]
    if not numbers:
        return ""
    return f"{'lines' if len(numbers) > 1 else 'line'} {_few(numbers)} without a filled cell: passed over"


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def _check_header(content: bytes, path: Path, *, advice: str = _ELSEWHERE) -> None:
    """Raise UsageError when rows cannot be added to a file with this content, because it is not as we write it."""
    head = _line(header())
    if content.startswith(head) or head.startswith(content):
        return
    if marks := sheet.marks_of_another_program(content):
        shown = ", ".join(marks)
        raise UsageError(f"{path} was saved by another program ({shown}), so no rows are added to it: {advice}")
    found = content.split(b"\n", 1)[0].decode(errors="replace").split(",")
    missing, unknown = [c for c in header() if c not in found], [c for c in found if c not in header()]
    difference = "; ".join(
        f"{what} {_few(names)}" for what, names in (("it lacks", missing), ("it has the unknown", unknown)) if names
    )
    raise UsageError(f"{path} has other columns than schema {SCHEMA} ({difference or 'another order'}): {advice}")


def _write_all(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
