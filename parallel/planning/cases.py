"""The contract of a case: the columns that a planner reads, what each may hold, and the defaults of what is left empty.

docs/planner.md lists the columns. A row is read by itself: what is wrong in one is said with its line, and the others
are predicted.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paralab.console.inputs import read_whole
from paralab.errors import ConfigError, DataError, UsageError, did_you_mean
from paralab.options.numbers import meant, number_of

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-1p", "zb-2p", "zbv", "dualpipev")
SHOWN = 10  # layouts of an answer, where no other number is asked for
Raw = Mapping[str, Any]  # what the cells of a row say, by column; a column whose cell is empty is not there


@dataclass(frozen=True)
class Column:
    """A column of the contract. read: return the value of a cell; it raises ValueError with what is needed.

    meaning, empty: what it holds, and what is taken where it is empty, for docs/planner.md.
    """

    name: str
    read: Callable[[str], object]
    meaning: str
    empty: str = ""


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = number_of(text)
        if number is None or not low <= number <= high or number != int(number):
            raise ValueError(f"a whole number from {low} to {high:,}{meant(text, whole=True)}")
        return int(number)

    return read


def _number(text: str) -> float:
    number = number_of(text)
    if number is None:
        raise ValueError(f"a number{meant(text)}")
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _real(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        number = _number(text)
        if not low <= number <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return number

    return read


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"one of {', '.join(words)}{did_you_mean(text.lower(), words)}")
        return text.lower()

    return read


def _stages(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(";"))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise ValueError("whole numbers with ; between them, such as 8;8;7;7")
    return numbers


_SIZE, _DEGREE = _whole(1, 10_000_000), _whole(1, 1_000_000)
_LINK = _real(0.001, 1e6)
_ANY: Callable[[str], str] = str
_BITS = _choice("fp32", "fp16", "bf16", "fp8")

COLUMNS = (
    Column("case_id", _ANY, "comes back unchanged", "the line"),
    Column("model", _ANY, "a label for people; says nothing to the planner"),
    Column("layers", _whole(1, 100_000), "number of transformer layers", "needed"),
    Column("hidden", _SIZE, "width of the residual stream", "needed"),
    Column("heads", _SIZE, "number of attention heads", "heads of 128"),
    Column("kv_heads", _SIZE, "number of heads of keys and values", "heads"),
    Column("head_dim", _SIZE, "elements of a head", "hidden / heads"),
    Column("ffn", _SIZE, "inner width of the MLP", "4 hidden; gated: 8/3 hidden"),
    Column("gated", _boolean, "whether the MLP has a gate and an up projection (SwiGLU)", "false"),
    Column("vocab", _SIZE, "number of tokens in the vocabulary, before padding", "50257"),
    Column("tied_embeddings", _boolean, "whether the output layer is the embedding", "true; gated: false"),
    Column(
        "position",
        _choice("learned", "rotary", "alibi", "none"),
        "learned, rotary, alibi or none",
        "learned; gated: rotary",
    ),
    Column("norm", _choice("layernorm", "rmsnorm"), "layernorm or rmsnorm", "layernorm; gated: rmsnorm"),
    Column("experts", _whole(0, 1_000_000), "number of experts in every layer of a mixture", "0, dense"),
    Column(
        "experts_per_token", _whole(0, 1_000_000), "number of experts that each token passes through", "2 of a mixture"
    ),
    Column("expert_ffn", _whole(0, 10_000_000), "inner width of an expert", "ffn"),
    Column(
        "sequence_length",
        _whole(1, 1_000_000_000),
        "tokens of a whole sequence, before context ranks divide it",
        "2048",
    ),
    Column(
        "gpu",
        _ANY,
        "a name of `parallel/planning/devices.csv` or of `--device`, or a file of `paralab calibrate`",
        "`--gpu`",
    ),
    Column("n_gpus", _DEGREE, "number of GPUs in all: dp x tp x pp x cp", "that product"),
    Column("gpus_per_node", _DEGREE, "number of GPUs that fast links join: those of a node", "of the device"),
    Column("intra_node_gbyte_per_s", _LINK, "link of one GPU inside the node, one direction, GB/s", "of the device"),
    Column("inter_node_gbit_per_s", _LINK, "share of the network of one GPU, one direction, Gbit/s", "of the device"),
    Column("dp", _DEGREE, "data-parallel degree", "n_gpus / (tp pp cp)"),
    Column("tp", _DEGREE, "tensor-parallel degree", "1"),
    Column("pp", _DEGREE, "pipeline degree", "1"),
    Column("cp", _DEGREE, "context-parallel degree", "1"),
    Column("ep", _DEGREE, "expert-parallel degree, inside dp", "1"),
    Column(
        "zero",
        _whole(0, 3),
        "0 replicas; divided over dp are 1 optimizer states, 2 also gradients, 3 also weights",
        "0",
    ),
    Column("shard", _DEGREE, "data ranks of a group that ZeRO divides over (hybrid sharding)", "all of them"),
    Column(
        "schedule",
        _choice(*SCHEDULES),
        "gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-1p, zb-2p, zbv, dualpipev",
        "1f1b; interleaved where vpp is above 1",
    ),
    Column("vpp", _whole(1, 100_000), "stages (chunks) of one pipeline rank", "1; interleaved and V-shaped: 2"),
    Column(
        "layers_per_stage", _stages, "`;` between the pp x vpp stages in model order", "evenly, the first ones more"
    ),
    Column("sequence_parallel", _boolean, "whether activations between the tensor-parallel parts are divided", "false"),
    Column("cp_style", _choice("ring", "ulysses"), "ring or ulysses", "ring"),
    Column("micro_batch_size", _SIZE, "sequences of a micro-batch", "1"),
    Column(
        "global_batch_size",
        _whole(1, 1_000_000_000),
        "sequences of an optimizer step, over all GPUs",
        "one micro-batch a data rank; 4 pp of them in a pipeline",
    ),
    Column(
        "recompute",
        _choice("none", "selective", "full"),
        "none, selective (attention core; framework torchtitan: its per-operator policy) or full",
        "none",
    ),
    Column(
        "precision",
        _choice("fp32", "fp16", "bf16", "fp8", "nvfp4"),
        "of the matrix products: fp32, fp16, bf16, fp8, nvfp4",
        "bf16 where the device has it",
    ),
    Column("gradient_precision", _BITS, "of accumulated gradients", "fp16 beside fp16, else fp32"),
    Column("state_precision", _BITS, "of optimizer states and master weights", "fp32"),
    Column(
        "attention",
        _choice("eager", "fused", "flash1", "flash2", "flash3"),
        "eager, fused (scores in memory), flash1, flash2 or flash3",
        "by device: fused before Ampere, flash3 on Blackwell, else flash2",
    ),
    Column("fused_norm", _boolean, "whether norms are one kernel", "true in Megatron"),
    Column("compile", _boolean, "whether layers are compiled", "false"),
    Column(
        "optimizer",
        _ANY,
        "as its source names it; sgd and lion have one state, adamw8bit two of 8 bits, others two",
        "adamw",
    ),
    Column(
        "framework",
        _ANY,
        "as its source names it; megatron-* (nemo), deepspeed, torchtitan, llm-foundry and paralab are known",
        "unknown: PyTorch's FSDP and pipelines; a model of `--model`: paralab",
    ),
    Column(
        "dp_overlap",
        _boolean,
        "whether data-parallel communication runs beside computation",
        "true with flash attention or zero 2 and 3",
    ),
    Column("tp_overlap", _boolean, "whether tensor-parallel communication does", "false"),
    Column(
        "memory_kind",
        _choice("allocated", "reserved", "device"),
        "allocated (torch), reserved (torch) or device (all in use)",
        "device",
    ),
)
BY_NAME = {column.name: column for column in COLUMNS}
# What tables of measurements have beside these; a planner looks at none of it.
IGNORED = ("table", "source_row", "quality", "licence", "notes")
MEASURED = "measured_"


@dataclass(frozen=True)
class Row:
    """A line of a file of cases. raw: its values; or error: what is wrong with it.

    measured, quality: what its source says of it, for checking predictions.
    """

    line: int
    case_id: str
    raw: Raw
    measured: Mapping[str, str]
    quality: str = ""
    error: str | None = None


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file of cases, `-` for stdin's bytes not among them.

    Raises: DataError where the file is no such table; ConfigError for a column that is unknown or there twice.
    """
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV in UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path} has zero bytes, and is no CSV file: give a table of cases")
    first = text.split("\n", 1)[0]  # spreadsheets put semicolons or tabs between cells where a comma is in numbers
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=max(",;\t", key=first.count))
    try:
        header = [name.strip() for name in next(lines, [])]
        check_header(header, path)
        return list(_rows(header, lines))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}: quote cells as CSV does") from None


def check_header(header: list[str], path: Path) -> None:
    """Raise DataError for a file without columns; ConfigError for one that is unknown or there twice."""
    if not any(header):
        raise DataError(f"{path} has no columns: its first line has to name them, such as layers,hidden,gpu,dp,tp,pp")
    for name in header:
        if header.count(name) > 1:
            raise ConfigError(f"{path}: column {name!r} is there {header.count(name)} times: leave one")
        if name not in BY_NAME and name not in IGNORED and not name.startswith(MEASURED):
            hint = did_you_mean(name, BY_NAME)
            raise ConfigError(f"{path}: column {name!r} is unknown{hint}: docs/planner.md lists the columns")


def _rows(header: list[str], lines: "csv._reader") -> Iterator[Row]:  # type: ignore[name-defined]
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        line, named = lines.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=False))
        case_id = named.get("case_id", "") or str(line)
        measured = {name: value for name, value in named.items() if name.startswith(MEASURED)}
        try:
            if len(cells) != len(header):
                raise UsageError(f"{len(cells)} cells, and the header has {len(header)}: give a cell for each column")
            yield Row(line, case_id, parse(named), measured, named.get("quality", ""))
        except UsageError as error:
            yield Row(line, case_id, {}, measured, error=str(error))


def parse(cells: Mapping[str, str]) -> Raw:
    """Return the values of the cells that are not empty, by column. Raises: ConfigError for one that cannot be."""
    raw = {}
    for name, text in cells.items():
        if text == "" or name not in BY_NAME:
            continue
        try:
            raw[name] = BY_NAME[name].read(text)
        except ValueError as error:
            raise ConfigError(f"{name} is {text!r}: give {error}") from None
    return raw


def write(header: list[str], rows: list[list[str]]) -> bytes:
    """Return a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
