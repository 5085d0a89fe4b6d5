"""The options of one run: what there is to choose, and which values go together. Imports no torch.

Each option is declared once, as a dataclass field made by `option`: the flag, its line in --help, the key of the
configuration file and the checks all come from there. None means "choose what suits the model and the machine".

A command with more options than these subclasses `RunConfig` with further fields; `paralab.options.flags` reads it as
well.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from paralab.errors import ConfigError
from paralab.layout import MOST_RANKS, Layout
from paralab.layout.strategies import ALIASES, STRATEGIES
from paralab.models import FORMS, NAMES, Norm, Residual, known
from paralab.options.choices import (
    CONVEX_METHODS,
    Backend,
    CompileMode,
    EngineChoice,
    GradCompression,
    LrSchedule,
    OptimizerName,
    OuterOptimizer,
    Precision,
)
from paralab.options.option import MEMORY, MODEL, OPTIMIZER, PARALLELISM, STEPS, no_other, option
from paralab.options.settings import plain
from paralab.options.tables import read_table, to_toml
from paralab.options.values import convert

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that record them, on a GPU
_A_YEAR_S = 365 * 24 * 3600
_ON_GPUS = "on with GPUs, off without"
ConfigT = TypeVar("ConfigT", bound="RunConfig")


def _no_convex_method(text: str) -> None:
    """Refuse a method that minimises convex functions alone. Raises: ConfigError."""
    for problem, methods in CONVEX_METHODS.items():
        if text in methods:
            raise ConfigError(
                f"--optimizer {text} is for convex functions, and trains no model: use "
                f"{' or '.join(get_args(OptimizerName))}, or paralab optimise --problem {problem} --methods {text}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, as requested. Values are checked when it is made, against each other as well.

    Raises: ConfigError for a value that is not allowed, LayoutError for a layout that does not fit.
    """

    model: str = option(
        "gpt2",
        f"Model to train: a built-in one ({', '.join(NAMES)}); a causal language model of transformers, as "
        "hf:NAME_OR_FOLDER, by its folder or its name on the hub (docs/hugging-face.md); or the ModelSpec called NAME "
        "in a Python file, as FILE.py:NAME, SPEC where it is left out (docs/own-model.md)",
        group=MODEL,
        choices=NAMES,
        metavar="MODEL",
        others=known,
        form=FORMS,
    )
    size: str | None = option(
        None, "Size of the model, such as nano or 124m", group=MODEL, unset="one that trains on a laptop"
    )
    data: str | None = option(
        None,
        "Data set: the name of a built-in one, a file, a folder, or the name of a Hugging Face data set",
        group=MODEL,
        unset="a built-in one that suits the model",
    )
    seq_len: int | None = option(
        None, "Tokens per sample (text models)", group=MODEL, at_least=1, unset="that of the size"
    )
    text_column: str = option("text", "Column that holds the text, where the data has columns", group=MODEL)
    streaming: bool = option(
        False,
        "Stream a Hugging Face data set instead of storing it on disk; its tokens are stored either way",
        group=MODEL,
    )
    max_tokens: int | None = option(
        None, "Read at most this many tokens from each split of a text", group=MODEL, at_least=1, unset="all of them"
    )
    tokenizer: str | None = option(
        None,
        "Tokenizer that texts are read with, whose vocabulary the model gets: gpt2, bytes, or a tokenizer.json (models "
        "gpt2, llama and mixtral)",
        group=MODEL,
        metavar="FILE",
        unset="that of the model",
    )
    n_classes: int | None = option(
        None, "Number of classes (models of labelled images)", group=MODEL, at_least=1, unset="as many as the data has"
    )
    held_out_class: int | None = option(
        None,
        "Leave this class out of the data (models of labelled images), so that paralab anomaly can look for it",
        group=MODEL,
        at_least=0,
        unset="no class is left out",
    )
    norm: Norm | None = option(
        None,
        "Normalisation layers (image models): batch norm of each rank, batch norm over all data ranks, group norm, "
        "or none",
        group=MODEL,
        choices=get_args(Norm),
        unset="syncbatch",
    )
    residual: Residual | None = option(
        None,
        "Residual connections, by which the input of a block is added to its output (image models)",
        group=MODEL,
        choices=get_args(Residual),
        aliases={"true": "on", "false": "off"},  # what YAML makes of on and off
        metavar="on|off",
        unset="on",
    )
    seed: int = option(0, "Seed of the initial weights, of shuffling and of noise", group=MODEL, at_least=0)

    strategy: str | None = option(
        None,
        f"Parallelism strategy: {', '.join((*STRATEGIES, *ALIASES))} (paralab strategies says when to use which)",
        group=PARALLELISM,
        choices=tuple(STRATEGIES),
        metavar="NAME",
        aliases=ALIASES,
        unset="ddp, or single where there is one process",
    )
    layout: Layout | None = option(
        None,
        "Exact layout in place of a strategy: degree of each axis and options, such as dp2.tp2.pp2/zero1/1f1b/mb4/sp",
        group=PARALLELISM,
        unset="that of the strategy",
    )
    nproc: int | None = option(
        None,
        "Number of processes, one per device",
        group=PARALLELISM,
        at_least=1,
        at_most=MOST_RANKS,
        unset="one per GPU; 4, or what the strategy needs, on a CPU",
    )
    global_batch_size: int | None = option(
        None,
        "Samples per optimizer step, over all processes together",
        group=PARALLELISM,
        at_least=1,
        at_most=10**7,
        unset="16 texts, 64 images or 512 points",
    )
    accumulation: int = option(
        1,
        "Gradient accumulation: number of backward passes per optimizer step",
        group=PARALLELISM,
        at_least=1,
        at_most=10**5,
    )
    engine: EngineChoice = option(
        "auto",
        "Library that runs the training step; auto uses that of the launcher where it can, otherwise torch",
        group=PARALLELISM,
        choices=get_args(EngineChoice),
    )
    ds_config: str | None = option(
        None,
        "DeepSpeed configuration file, such as ds_configs/zero3.json",
        group=PARALLELISM,
        metavar="FILE",
        unset="made from the other options",
    )
    timeout_s: float = option(
        1800.0,
        "Seconds that a rank waits for the others before the run counts as hung",
        group=PARALLELISM,
        above=0,
        at_most=_A_YEAR_S,
    )
    force: bool = option(
        False, "Start even if the model is predicted not to fit into the memory of this machine", group=PARALLELISM
    )
    grad_compression: GradCompression = option(
        "none",
        "Compress the gradients that data ranks send: it sends less and computes something else than one process, so "
        "that no parity is claimed; powersgd has rank 4, int8 a scale for each 256 numbers",
        group=PARALLELISM,
        choices=get_args(GradCompression),
    )
    outer_optimizer: OuterOptimizer = option(
        "average",
        "How data ranks that train apart for N steps (layout dp4/localN) come together: the average of their "
        "parameters (local SGD), or nesterov (DiLoCo, with its learning rate 0.7 and momentum 0.9)",
        group=PARALLELISM,
        choices=get_args(OuterOptimizer),
    )
    outer_fragments: int = option(
        1,
        "Number of fragments that the blocks are cut into, where data ranks train apart under nesterov: they bring one "
        "fragment together at a time, each at steps of its own (streaming DiLoCo), which sends as much in smaller "
        "parts",
        group=PARALLELISM,
        at_least=1,
    )
    outer_overlap: int = option(
        0,
        "With fragments: let the message about each travel during this many further steps; a rank then goes on "
        "halfway between its own parameters and what the message gives",
        group=PARALLELISM,
        at_least=0,
    )
    debug_collectives: str | None = option(
        None,
        "For debugging (slow): check that all ranks call the same collectives, name the first that differs, and "
        "write flight recordings to this folder when the run fails",
        group=PARALLELISM,
        metavar="DIR",
        unset="off",
    )

    steps: int = option(20, "Number of optimizer steps to time, after warm-up", group=STEPS, at_least=1)
    warmup: int = option(
        3, "Number of warm-up steps, which come first and are left out of the timing", group=STEPS, at_least=0
    )
    out: str | None = option(
        None, "CSV file to append the result to, one row per run", group=STEPS, metavar="FILE", unset="runs/results.csv"
    )

    optimizer: OptimizerName = option(
        "adamw",
        "Optimizer: AdamW, or SGD with momentum, both fused; or adamw8bit, AdamW whose states take 8 bits a number, by "
        "torchao (pip install 'paralab[optim8bit]')",
        group=OPTIMIZER,
        choices=get_args(OptimizerName),
        others=_no_convex_method,
    )
    # learning rate, betas, weight decay, clipping and the floor of the schedule: Brown et al. 2020, appendix B
    learning_rate: float = option(6e-4, "Peak learning rate; SGD usually needs about 0.1", group=OPTIMIZER, at_least=0)
    weight_decay: float = option(
        0.1,
        "Weight decay of matrices (decoupled with AdamW, an L2 penalty with SGD); biases and norms have none",
        group=OPTIMIZER,
        at_least=0,
    )
    betas: tuple[float, float] = option(
        (0.9, 0.95), "Decay rates of AdamW's first and second moments", group=OPTIMIZER, at_least=0, below=1
    )
    eps: float = option(
        1e-8, "Epsilon of AdamW, added to the square root of the second moment", group=OPTIMIZER, above=0
    )
    momentum: float = option(0.9, "Momentum of SGD", group=OPTIMIZER, at_least=0, below=1)
    clip_norm: float | None = option(
        1.0, "Clip the gradient to this norm, taken over all ranks; none does not clip", group=OPTIMIZER, above=0
    )
    lr_schedule: LrSchedule = option(
        "cosine",
        "Learning rate after its warm-up: cosine decay down to --min-lr-ratio, or constant",
        group=OPTIMIZER,
        choices=get_args(LrSchedule),
    )
    lr_warmup_steps: int = option(
        0, "Number of steps in which the learning rate rises linearly to its peak", group=OPTIMIZER, at_least=0
    )
    min_lr_ratio: float = option(
        0.1,
        "Learning rate at the end of cosine decay, as a fraction of the peak",
        group=OPTIMIZER,
        at_least=0,
        at_most=1,
    )

    precision: Precision = option(
        "fp32",
        "Precision of the arithmetic; weights and optimizer states stay fp32, except in fp64, which is for parity",
        group=MEMORY,
        choices=get_args(Precision),
    )
    checkpointing: str = option(
        "none",
        "Activation checkpointing, which recomputes activations to save memory: in no block, in all (full), in "
        "every N-th block, or in the attention of every block (selective); offload recomputes none and keeps those of "
        "all blocks in the memory of the host",
        group=MEMORY,
        pattern="none|full|selective|offload|[1-9][0-9]*",
        metavar="none|full|selective|offload|N",
    )
    compile: CompileMode = option(
        "none",
        "Mode of torch.compile, which compiles each block by itself; none does not compile",
        group=MEMORY,
        choices=get_args(CompileMode),
        aliases={"false": "none", "true": "default"},
        metavar="|".join(get_args(CompileMode)),
    )
    channels_last: bool = option(False, "Keep image tensors in channels-last memory format", group=MEMORY)
    threads: int | None = option(
        None,
        "CPU threads per process",
        group=MEMORY,
        at_least=1,
        unset="the CPU cores allowed, shared evenly by the processes of a machine",
    )
    backend: Backend | None = option(
        None,
        "Process-group backend",
        group=MEMORY,
        choices=get_args(Backend),
        unset="nccl on GPUs, gloo on a CPU",
    )
    loader_workers: int = option(
        0,
        "Number of processes per rank that prepare batches; with 0 the rank prepares them itself",
        group=MEMORY,
        at_least=0,
        at_most=256,
    )
    pin_memory: bool | None = option(
        None, "Put batches into page-locked memory, from which copies to a GPU are faster", group=MEMORY, unset=_ON_GPUS
    )
    non_blocking: bool | None = option(None, "Copy batches to the GPU while it computes", group=MEMORY, unset=_ON_GPUS)
    cast_on_device: bool = option(
        False,
        "Copy images and tokens to the device in their stored integer types and convert them there, to copy less",
        group=MEMORY,
    )

    def __post_init__(self) -> None:
        for declared in fields(self):
            # from_dict has converted already; whoever builds a config in code gets the same checks
            value = convert(declared, getattr(self, declared.name), where=declared.name)
            object.__setattr__(self, declared.name, value)
        if self.layout is not None and self.nproc is not None:
            self.layout.check_world(self.nproc)

    @property
    def cuda_graphs(self) -> bool:
        """Whether the compiled blocks are replayed as CUDA graphs where there is a GPU."""
        return self.compile in _CUDA_GRAPHS

    @property
    def goes_on(self) -> bool:
        """Whether an earlier run goes on, whose batch and data stay."""
        return False

    @property
    def checkpoint_every(self) -> int | None:
        """N when every N-th block is recomputed: 1 for all of them, None for no block."""
        if self.checkpointing in ("none", "selective", "offload"):
            return None
        return 1 if self.checkpointing == "full" else int(self.checkpointing)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (str, int, float, bool, list, None) by name; `from_dict` is its inverse."""
        return {declared.name: plain(getattr(self, declared.name)) for declared in fields(self)}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any], *, source: str = "") -> ConfigT:
        """Make a config from plain values, as a file holds them; what is absent has its default.

        source: the file's name, for messages.
        Raises: ConfigError for an unknown key at any depth, and whatever the class itself raises.
        """
        return cls(**read_table(fields(cls), values, source=source))

    def save(self, path: str | Path) -> None:
        """Write every value to a TOML or JSON file (by its suffix) that `--config` reads back.

        Raises: ConfigError for another suffix.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2) + "\n"
        elif path.suffix == ".toml":
            text = to_toml(fields(self), self.to_dict())
        else:
            raise ConfigError(f"cannot write a configuration to {path.name}: use a name ending in .toml or .json")
        path.write_text(text, encoding="utf-8")


def changed(name: str, default: Any, **changes: Any) -> Any:
    """Declare an option of every run again, with another default. changes: to what `option` was told of it.

    Other choices are all that there are.
    """
    declared = RunConfig.__dataclass_fields__[name]
    only = {"others": no_other, "form": ""} if "choices" in changes else {}
    return field(default=default, metadata={**declared.metadata, **only, **changes})
