"""The columns of a case: what each may hold, what it means, and what is taken where it is empty (docs/planner.md)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from paralab.errors import did_you_mean
from paralab.options.numbers import meant, number_of

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-1p", "zb-2p", "zbv", "dualpipev")


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
    Column("shared_ffn", _whole(0, 10_000_000), "inner width of all shared experts of a layer together", "0, none"),
    Column("dense_layers", _whole(0, 100_000), "number of first layers without experts, of width ffn", "0"),
    Column("experts_every", _whole(1, 100_000), "every how many of the layers behind these one has experts", "1"),
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
    Column(
        "gradient_precision",
        _BITS,
        "of accumulated gradients",
        "fp16 beside fp16; bf16 beside bf16 in DeepSpeed; else fp32",
    ),
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
# The sizes of a model that a command line has options for
_SIZES = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "experts", "experts_per_token", "expert_ffn")
SHAPES = (*_SIZES, "shared_ffn", "dense_layers", "experts_every")
BY_NAME = {column.name: column for column in COLUMNS}
# What tables of measurements have beside these; a planner looks at none of it.
IGNORED = ("table", "source_row", "quality", "licence", "notes")
MEASURED = "measured_"
