"""The options of one run: defaults < configuration file < flags. Imports no torch.

Each option is declared once, as a dataclass field made by `option`: the flag, its line in --help, the key of the
configuration file and the checks all come from there. None means "choose what suits the model and the machine".

A command with more options than these subclasses `RunConfig` with further fields; `resolve` works for it as well.
"""

import argparse
import json
import math
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from paralab.errors import ConfigError, did_you_mean
from paralab.layout import MOST_RANKS, Layout
from paralab.layout.strategies import ALIASES, STRATEGIES
from paralab.models import FORMS, NAMES, Norm, known
from paralab.options.arguments import MOST, Parser, hint
from paralab.options.choices import (
    Backend,
    CompileMode,
    EngineChoice,
    GradCompression,
    LrSchedule,
    OptimizerName,
    OuterOptimizer,
    Precision,
)
from paralab.options.files import load
from paralab.options.settings import Origin, plain, shown

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that record them, on a GPU

MODEL, PARALLELISM, STEPS = "model and data", "parallelism", "steps and results"  # titles of groups of options
OPTIMIZER, MEMORY = "optimizer", "precision, memory and speed"

_A_YEAR_S = 365 * 24 * 3600
_ON_GPUS = "on with GPUs, off without"

ConfigT = TypeVar("ConfigT", bound="RunConfig")


def option(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    others: Callable[[str], str | None] | None = None,
    form: str = "",
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    pattern: str = "",
    metavar: str = "",
    unset: str = "",
) -> Any:
    """Declare an option: a dataclass field with all that its flag, its help and its checks need.

    Bounds apply to numbers (`above` and `below` exclude the bound itself) and to each part of a tuple. `aliases`
    are further names that are read as one of the choices, and `others` reads what is none of them, of the form `form`:
    it returns the value, or None for what is not allowed. `pattern` is a regular expression for strings. A list is
    written with commas as a flag; choices and bounds apply to each part. Where the default is None, `unset` says what
    is used then, as it stands in --help after "default:".
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "group": group,
            "choices": tuple(choices),
            "aliases": aliases or {},
            "others": others or _none,
            "form": form,
            "bounds": (at_least, above, at_most, below),
            "pattern": pattern,
            "metavar": metavar,
            "unset": unset,
        },
    )


def changed(name: str, default: Any, **changes: Any) -> Any:
    """Declare an option of every run again, with another default. changes: to what `option` was told of it.

    Other choices are all that there are.
    """
    declared = RunConfig.__dataclass_fields__[name]
    only = {"others": _none, "form": ""} if "choices" in changes else {}
    return field(default=default, metadata={**declared.metadata, **only, **changes})


def _none(text: str) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, as requested. Values are checked when it is made, against each other as well.

    Raises: ConfigError for a value that is not allowed, LayoutError for a layout that does not fit.
    """

    model: str = option(
        "gpt2",
        "Model to train: a built-in one; a causal language model of transformers, by its folder or its name on the hub "
        "(docs/hugging-face.md); or the ModelSpec called NAME in a Python file, SPEC where it is left out "
        "(docs/own-model.md)",
        group=MODEL,
        choices=NAMES,
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
    norm: Norm | None = option(
        None,
        "Normalisation layers (image models): batch norm of each rank, batch norm over all data ranks, or group norm",
        group=MODEL,
        choices=get_args(Norm),
        unset="syncbatch",
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
        "Optimizer: AdamW, or SGD with momentum, both fused",
        group=OPTIMIZER,
        choices=get_args(OptimizerName),
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
        "Activation checkpointing, which recomputes activations to save memory: in no block, in all (full), or in "
        "every N-th block; offload recomputes none and keeps those of all blocks in the memory of the host",
        group=MEMORY,
        pattern="none|full|offload|[1-9][0-9]*",
        metavar="none|full|offload|N",
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
            value = _convert(declared, getattr(self, declared.name), where=declared.name)
            object.__setattr__(self, declared.name, value)
        self._check_layout()

    @property
    def cuda_graphs(self) -> bool:
        """Whether the compiled blocks are replayed as CUDA graphs where there is a GPU."""
        return self.compile in _CUDA_GRAPHS

    def _check_layout(self) -> None:
        """Refuse, before any process is started, a layout that cannot run as requested."""
        if self.layout is None:
            return
        if self.nproc is not None:
            self.layout.check_world(self.nproc)
        self.layout.check_schedule(self.accumulation)
        if self.global_batch_size is not None:
            self.layout.divide(self.global_batch_size, self.accumulation)

    @property
    def checkpoint_every(self) -> int | None:
        """N when every N-th block is recomputed: 1 for all of them, None for no block."""
        if self.checkpointing in ("none", "offload"):
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
        return cls(**_read_table(cls, values, source=source))

    def save(self, path: str | Path) -> None:
        """Write every value to a TOML or JSON file (by its suffix) that `--config` reads back.

        Raises: ConfigError for another suffix.
        """
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2) + "\n"
        elif path.suffix == ".toml":
            text = _to_toml(self)
        else:
            raise ConfigError(f"cannot write a configuration to {path.name}: use a name ending in .toml or .json")
        path.write_text(text, encoding="utf-8")


def resolve(
    argv: Sequence[str],
    *,
    file: str | Path | None = None,
    config: type[ConfigT] = RunConfig,  # type: ignore[assignment]
    prog: str = "paralab run",
    description: str | None = None,
) -> ConfigT:
    """Read flags over a configuration file over defaults: see `read`."""
    return read(argv, file=file, config=config, prog=prog, description=description)[0]


def read(
    argv: Sequence[str],
    *,
    file: str | Path | None = None,
    config: type[ConfigT] = RunConfig,  # type: ignore[assignment]
    prog: str = "paralab run",
    description: str | None = None,
) -> tuple[ConfigT, dict[str, Origin]]:
    """Read flags over a configuration file over defaults; return the options, and the origin of each that was given.

    `--config FILE` among the flags takes the place of `file`. `--local_rank` and `--local-rank`, which some
    launchers add, are ignored: ranks come from the environment. `--help` prints and raises SystemExit(0).

    Raises: ConfigError for an unknown, misspelt or abbreviated flag or key, and whatever `config` itself raises.
    """
    parser = make_parser(config, prog=prog, description=description)
    flags, unknown = parser.parse_known_args(list(argv))
    if unknown:
        _refuse(parser, unknown[0])
    given = {key: value for key, value in vars(flags).items() if value is not None}
    given.pop("local_rank", None)
    file = given.pop("config", file)
    values = _read_table(config, load(file), source=str(file)) if file else {}
    origins = dict.fromkeys(values, Origin("file", str(file)))
    for declared in fields(config):
        if declared.name in given:
            values[declared.name] = _convert(declared, given[declared.name], where=_flag(declared))
            origins[declared.name] = Origin("flag")
    return config(**values), origins


def make_parser(
    config: type[RunConfig] = RunConfig, *, prog: str = "paralab run", description: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with one flag per option, in groups. Flags that are not given are None.

    Values stay text: `resolve` converts them, so that flags and files have the same checks and messages.
    """
    parser = _Parser(prog=prog, usage="%(prog)s [OPTION...]", description=description)
    parser.add_argument(
        "--config", metavar="FILE", help="Read options from this TOML, YAML or JSON file; flags override it"
    )
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    for declared in fields(config):
        name = declared.metadata["group"]
        group = groups.get(name) or groups.setdefault(name, parser.add_argument_group(name))
        _add_flag(group, declared)
    return parser


def flags_of(config: RunConfig, *, leave_out: Collection[str] = ()) -> list[str]:
    """Return the flags of `paralab run` that make a config again; what has the default of that command is left out."""
    defaults = {declared.name: declared.default for declared in (*fields(config), *fields(RunConfig))}
    words: list[str] = []
    for declared in fields(config):
        value = getattr(config, declared.name)
        if declared.name in leave_out or value == defaults[declared.name]:
            continue
        if isinstance(value, bool):
            words.append(_flag(declared) if value else "--no-" + _flag(declared)[2:])
        else:
            values = value if isinstance(value, tuple) else ("none" if value is None else value,)
            words += [_flag(declared), ",".join(map(str, values))]
    return words


class _Parser(Parser):
    complaint = ConfigError


def _refuse(parser: argparse.ArgumentParser, word: str) -> NoReturn:
    flag = word.split("=")[0]
    if not flag.startswith("-"):
        raise ConfigError(f"{word!r} does not belong to any option: see {parser.prog} --help")
    known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    raise ConfigError(f"{flag} is unknown{hint(flag, known)}: see {parser.prog} --help")


def _add_flag(group: Any, declared: Field) -> None:
    meta = declared.metadata
    default = meta["unset"] if declared.default is None else shown(declared.default)
    text = (f"{meta['help']} (default: {default})" if default else meta["help"]).replace("%", "%%")
    if bool in _kinds(declared):
        group.add_argument(_flag(declared), action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    words = filter(None, (*meta["choices"], *meta["aliases"], meta["form"]))
    metavar = meta["metavar"] or "|".join(words) or _kinds(declared)[0].__name__.upper()
    group.add_argument(_flag(declared), metavar=_METAVARS.get(metavar, metavar), help=text)


_METAVARS = {"STR": "NAME", "INT": "N", "FLOAT": "X", "TUPLE": "X,X"}


def _flag(declared: Field) -> str:
    return "--" + declared.name.replace("_", "-")


def _kinds(declared: Field) -> tuple[type, ...]:
    """Return the types an option may have: `int | None` gives (int, NoneType), `tuple[float, float]` (tuple,)."""
    annotation = declared.type
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(_origin(part) for part in parts)


def _origin(annotation: Any) -> type:
    """Return the type of the values of an annotation: `str` for words, `list` for `list[int]`."""
    origin = get_origin(annotation)
    return str if origin is Literal else origin or annotation


def _read_table(config: type[RunConfig], values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Convert the values of a file. Raises: ConfigError for an unknown key at any depth."""
    declared_by_name = {declared.name: declared for declared in fields(config)}
    where = f" in {source}" if source else ""
    converted = {}
    for key, value in values.items():
        if key not in declared_by_name or (isinstance(value, Mapping) and value):
            path, name = _innermost(str(key), value)
            meant = hint(name, [_flag(declared) for declared in declared_by_name.values()])
            meant = meant.replace("--", "", 1).replace("-", "_") if "--" in meant else meant
            nested = ", and keys are not nested" if path != name else ""
            raise ConfigError(f"key {path!r}{where} is unknown{meant}{nested}: see paralab run --help for the options")
        converted[key] = _convert(declared_by_name[key], value, where=f"{key}{where}")
    return converted


def _innermost(key: str, value: Any) -> tuple[str, str]:
    """Return the dotted path of the first value inside nested tables, and its last part."""
    path = [key]
    while isinstance(value, Mapping) and value:
        key, value = next((str(name), inner) for name, inner in value.items())
        path.append(key)
    return ".".join(path), key


def _convert(declared: Field, value: Any, *, where: str) -> Any:
    """Return a value of the option's type, made from text or from what a file holds.

    where: what to call the option in messages, a flag or a key with its file.
    """
    kinds = _kinds(declared)
    if type(None) in kinds and (value is None or value == "none"):
        return None
    meta = declared.metadata
    if isinstance(value, bool) and str(value).lower() in meta["aliases"]:  # as a file has it
        value = str(value).lower()
    if kinds[0] is list:
        convert = _CONVERTERS[_element(declared)]
        value = [_known(meta, convert(word, where), where) for word in _words(value, where)]
    else:
        value = _known(meta, _CONVERTERS[kinds[0]](value, where), where)
    if meta["pattern"] and not re.fullmatch(meta["pattern"], value):
        raise ConfigError(f"{where} {value!r} is not allowed: use {meta['metavar']}")
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            _check_bounds(number, *_bounds(meta, number), where=where)
    return value


def _known(meta: Mapping[str, Any], value: Any, where: str) -> Any:
    """Return a value that is one of the choices, where there are any; an alias becomes what it stands for."""
    value = meta["aliases"].get(value, value) if isinstance(value, str) else value
    if meta["choices"] and value not in meta["choices"]:
        if isinstance(value, str) and (other := meta["others"](value)) is not None:
            return other
        listed = (*meta["choices"], *meta["aliases"])
        use = f"use one of {', '.join(listed)}" + (f", or {meta['form']}" if meta["form"] else "")
        raise ConfigError(f"{where} {value} is unknown{did_you_mean(value, listed)}: {use}")
    return value


def _element(declared: Field) -> type:
    """Return the type of what a list option holds: `list[int] | None` gives int."""
    parts = get_args(declared.type) if get_origin(declared.type) in (Union, types.UnionType) else (declared.type,)
    return next(_origin(get_args(part)[0]) for part in parts if get_origin(part) is list)


def _words(value: Any, where: str) -> list[Any]:
    """Return the parts of a list: of `a, b` as a flag has it, or of a list in a file."""
    words = list(value) if isinstance(value, (list, tuple)) else str(value).split(",")
    if not words:
        raise ConfigError(f"{where} is empty: values joined by commas are needed")
    return [word.strip() if isinstance(word, str) else word for word in words]


def _bounds(meta: Mapping[str, Any], number: float) -> tuple[float, float, float, float]:
    """Return the bounds of an option, with one for whole numbers that are too large for any."""
    at_least, above, at_most, below = meta["bounds"]
    return at_least, above, min(at_most, MOST) if isinstance(number, int) else at_most, below


def _check_bounds(number: float, at_least: float, above: float, at_most: float, below: float, *, where: str) -> None:
    if at_least <= number <= at_most and above < number < below and math.isfinite(number):
        return
    limits = [
        f"{sign} {bound:g}"
        for sign, bound in (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
        if math.isfinite(bound)
    ]
    got = str(number) if isinstance(number, int) and abs(number) < 10**15 else f"{float(number):g}"
    raise ConfigError(f"{where} {got} is not allowed: use a number {' and '.join(limits) or 'that is finite'}")


def _to_str(value: Any, where: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):  # YAML reads checkpointing: 2 as a number
        return str(value)
    raise ConfigError(f"{where} is {value!r}: a name is needed")


def _to_int(value: Any, where: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,40}", value):
        return int(value)
    raise ConfigError(f"{where} is {_short(value)}: a whole number is needed")


def _to_float(value: Any, where: str) -> float:
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value) + 0.0  # there is no negative zero
    except (ValueError, OverflowError):
        pass
    raise ConfigError(f"{where} is {_short(value)}: a number is needed")


def _short(value: Any) -> str:
    """Return a value as it was written, without the greater part of what is very long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _to_pair(value: Any, where: str) -> tuple[float, float]:
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)) and len(parts) == 2:
        return (_to_float(parts[0], where), _to_float(parts[1], where))
    raise ConfigError(f"{where} is {value!r}: two numbers are needed, such as 0.9,0.95")


def _to_bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{where} is {value!r}: true or false is needed")


def _to_layout(value: Any, where: str) -> Layout:
    return value if isinstance(value, Layout) else Layout.parse(_to_str(value, where))


_CONVERTERS = {
    str: _to_str,
    int: _to_int,
    float: _to_float,
    tuple: _to_pair,
    bool: _to_bool,
    Layout: _to_layout,
}


def _to_toml(config: RunConfig) -> str:
    """Write `key = value` lines under a comment per group. None, which TOML lacks, is left out or "none"."""
    lines, group = [], None
    for declared in fields(config):
        value = plain(getattr(config, declared.name))
        if value is None and declared.default is None:
            continue
        if declared.metadata["group"] != group:
            group = declared.metadata["group"]
            lines += ["", f"# {group}"]
        lines.append(f"{declared.name} = {_toml_value('none' if value is None else value)}")
    return "\n".join(lines[1:]) + "\n"


def _toml_value(value: Any) -> str:
    # JSON's strings, numbers, booleans and lists are TOML as they are, but for one character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
