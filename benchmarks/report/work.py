"""Which columns say what work a run did, which say how it was done, and which describe the surroundings."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paralab.console.quantities import size_text, time_text
from paralab.records.row import RunRecord

_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")  # of git, of sha256


@dataclass(frozen=True)
class Column:
    """A column as people read it. `advice` is what to type so that two runs agree in it."""

    name: str
    label: str
    advice: str = ""


HARDWARE = (
    Column("device", "device"),
    Column("gpu_name", "GPU", "run both on one machine"),
    Column("gpu_count", "number of GPUs", "run both on one machine"),
    Column("cpu_model", "CPU", "run both on one machine"),
    Column("cores_allowed", "cores allowed", "run both with the same CPU limit"),
    Column("nodes", "nodes", "run both on as many nodes"),
    Column("link_mbit_per_s", "link in Mbit/s", "run both at one --bandwidth"),
    Column("world_size", "processes", "run both with one --nproc"),
)
WORK = (
    Column("model", "model", "run both with one --model"),
    Column("model_sha256", "content of the model's file", "run both with the same file of --model"),
    Column("size", "size", "run both with one --size"),
    Column("sequence_length", "sequence length", "run both with one --size and sequence length"),
    Column("tokenizer", "tokenizer", "run both with one --tokenizer"),
    Column("image_size_px", "image size", "run both with one --size and image size"),
    Column("n_classes", "number of classes", "run both with one --n-classes, or on one data set"),
    Column("norm", "norm", "run both with one --norm"),
    Column("residual", "residual connections", "run both with one --residual"),
    Column("global_batch_size", "global batch", "run both with one --global-batch-size"),
    Column("precision", "precision", "run both with one --precision"),
    Column("optimizer", "optimizer", "run both with one optimizer"),
    Column("until_loss", "loss to reach", "run both with one --until-loss"),
    Column("data", "data", "run both with one --data"),
    Column("data_sha256", "data checksum", "run both on the same file of --data"),
    *HARDWARE,
)
METHOD = (
    Column("strategy", "strategy"),
    Column("layout", "layout"),
    Column("engine", "engine"),
    Column("grad_compression", "gradient compression"),
    Column("outer_optimizer", "outer optimizer"),
    Column("outer_fragments", "outer fragments"),
    Column("outer_overlap", "outer overlap"),
    Column("checkpointing", "checkpointing"),
    Column("compile", "compile"),
    Column("offload", "offload"),
    Column("channels_last", "channels last"),
    Column("loader_workers", "loader workers"),
    Column("pin_memory", "pinned memory"),
    Column("non_blocking", "non-blocking copies"),
    Column("cast_on_device", "cast on device"),
    Column("micro_batch_size", "micro-batch"),
    Column("accumulation", "accumulation"),
)
ENVIRONMENT = (
    Column("git_commit", "commit"),
    Column("git_dirty", "uncommitted changes"),
    Column("paralab_version", "paralab"),
    Column("python_version", "Python"),
    Column("torch_version", "torch"),
    Column("deepspeed_version", "deepspeed"),
    Column("accelerate_version", "accelerate"),
    Column("cuda_version", "CUDA"),
    Column("nccl_version", "NCCL"),
    Column("driver_version", "driver"),
    Column("gpu_power_limit_w", "power limit"),
    Column("threads", "threads per rank"),
    Column("host_hash", "machine"),
    Column("launcher", "launcher"),
    Column("backend", "backend"),
    Column("parameters", "parameters"),
)

Key = tuple[object, ...]


@dataclass(frozen=True)
class Difference:
    """A column in which two groups of runs differ, with the values of each."""

    column: Column
    base: str
    other: str

    def __str__(self) -> str:
        return f"{self.column.label}: {self.base} / {self.other}"


def value(record: RunRecord, column: Column) -> object:
    """Return what a run did, or what was requested of it where it failed too early to know."""
    realised = getattr(record, column.name)
    return getattr(record, f"{column.name}_requested", None) if realised is None else realised


def key(record: RunRecord, columns: Sequence[Column]) -> Key:
    return tuple(value(record, column) for column in columns)


def group(records: Iterable[RunRecord], columns: Sequence[Column]) -> dict[Key, list[RunRecord]]:
    """Put runs together that agree in all columns, in order of appearance.

    A failed run often does not know all of them: it joins the first group of good runs that it does not contradict.
    """
    records = list(records)
    groups: dict[Key, list[RunRecord]] = {key(r, columns): [] for r in records if r.status == "ok"}
    known = list(groups)
    for record in records:
        mine = key(record, columns)
        if record.status != "ok":
            mine = next((k for k in known if _agree(mine, k)), mine)
        groups.setdefault(mine, []).append(record)
    return groups


def _agree(partial: Key, full: Key) -> bool:
    return all(mine is None or mine == theirs for mine, theirs in zip(partial, full, strict=True))


def differences(base: Iterable[RunRecord], other: Iterable[RunRecord], columns: Sequence[Column]) -> list[Difference]:
    """Return the columns in which two groups of runs do not hold the same values.

    What a failed run does not know counts for nothing.
    """
    base, other = list(base), list(other)
    found = [Difference(column, _values(base, column), _values(other, column)) for column in columns]
    return [difference for difference in found if difference.base != difference.other]


def _values(records: Iterable[RunRecord], column: Column) -> str:
    cells = {(value(record, column), record.status == "ok") for record in records}
    told = {show(cell) for cell, good in cells if good or cell is not None}
    return ", ".join(sorted(told)) or show(None)


def show(cell: object) -> str:
    """Return a cell for people: unknown is said, numbers are short, and so are checksums and commits."""
    if cell is None:
        return "unknown"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:g}"
    return str(cell)[:12] if _DIGEST.fullmatch(str(cell)) else str(cell)


def amount(cell: float | None, column: str) -> str:
    """Return a number with the unit that its column names, or a dash where it is unknown."""
    if cell is None:
        return "–"
    if cell == 0:
        return "0"
    if column.endswith("_bytes"):
        return size_text(cell)
    if column.endswith("_s") and not column.endswith("_per_s"):
        return time_text(cell)
    if column.endswith("_share") or column in ("mfu", "hfu"):
        return f"{100 * cell:.3g}%"
    if abs(cell) >= 1000:
        return f"{cell:,.0f}"
    unit = next((f" {name}" for end, name in (("_j", "J"), ("_w", "W"), ("_per_s", "/s")) if column.endswith(end)), "")
    return f"{cell:.3g}{unit}"


def work_label(record: RunRecord) -> str:
    """Name the work of a run in a few words, hardware included."""
    what = " ".join(filter(None, (record.model, record.size)))
    length = f"sequence {record.sequence_length}" if record.sequence_length else ""
    image = f"{record.image_size_px} px" if record.image_size_px else ""
    classes = f"{record.n_classes} classes" if record.n_classes else ""
    batch = f"batch {record.global_batch_size}" if record.global_batch_size else ""
    parts = [what, length, image, classes, batch, show(value(record, Column("precision", ""))), hardware_label(record)]
    return ", ".join(filter(None, parts))


def hardware_label(record: RunRecord) -> str:
    """Say how many processes ran on what. A CPU run says so."""
    size = value(record, Column("world_size", ""))
    processes = "1 process" if size == 1 else f"{show(size)} processes"
    nodes = f" on {record.nodes} nodes" if record.nodes and record.nodes > 1 else ""
    nodes += f" at {record.link_mbit_per_s:g} Mbit/s" if record.link_mbit_per_s else ""
    if record.device == "cuda":
        return f"{processes}{nodes}, GPU {record.gpu_name or ''}".rstrip()
    backend = f" ({record.backend})" if record.backend else ""
    return f"{processes}{nodes}, {'CPU' if record.device == 'cpu' else 'unknown device'}{backend}"


def method_labels(records: Sequence[RunRecord], *, after: Column = METHOD[0]) -> list[str]:
    """Name how each run was done: one column, and where runs share a name, as many more as it takes to part them."""
    labels = [show(value(record, after)) for record in records]
    for column in METHOD:
        cells = [show(value(record, column)) for record in records]
        parts = cells if column in METHOD[:3] else [f"{column.label} {cell}" for cell in cells]
        apart = {label: len({c for c, other in zip(cells, labels, strict=True) if other == label}) for label in labels}
        labels = [f"{label} {part}" if apart[label] > 1 else label for label, part in zip(labels, parts, strict=True)]
    return labels
