"""What one run is asked to do: defaults < configuration file < flags. Imports no torch.

Each option is declared once, as a dataclass field made by `option`: the flag, its line in --help, the key of the
configuration file and the checks all come from there. None means "choose what suits the model and the machine".

A command with more options than these subclasses `RunConfig` with further fields; `resolve` works for it as well.
"""

import argparse
import json
import math
import re
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from models import NAMES
from parallel.errors import ConfigError, did_you_mean
from parallel.layout import MOST_RANKS, Layout
from parallel.layout.strategies import ALIASES, STRATEGIES
from parallel.options.arguments import MOST, Parser, hint
from parallel.options.files import load

ENGINES = ("auto", "torch", "deepspeed", "accelerate")
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that record them, on a GPU

_A_YEAR_S = 365 * 24 * 3600

ConfigT = TypeVar("ConfigT", bound="RunConfig")


def option(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    pattern: str = "",
    metavar: str = "",
) -> Any:
    """Declare an option: a dataclass field with all that its flag, its help and its checks need.

    Bounds apply to numbers (`above` and `below` exclude the bound itself) and to each part of a tuple. `aliases`
    are further names that are read as one of the choices. `pattern` is a regular expression for strings. A list is
    written with commas as a flag; choices and bounds apply to each part.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "group": group,
            "choices": tuple(choices),
            "aliases": aliases or {},
            "bounds": (at_least, above, at_most, below),
            "pattern": pattern,
            "metavar": metavar,
        },
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, as asked for. Values are checked when it is made, against each other as well.

    Raises: ConfigError for a value that is not allowed, LayoutError for a layout that does not fit.
    """

    model: str = option("gpt2", "what to train", group="work", choices=NAMES)
    size: str | None = option(None, "preset of the model, such as nano or 124M", group="work")
    data: str | None = option(None, "built-in data set, file, folder or Hugging Face name", group="work")
    seq_len: int | None = option(None, "tokens per sample (text models)", group="work", at_least=1)
    text_column: str = option("text", "column that holds the text, where there are columns", group="work")
    streaming: bool = option(False, "read a Hugging Face set without storing it (its tokens are)", group="work")
    max_tokens: int | None = option(None, "read at most this many tokens of each split", group="work", at_least=1)
    n_classes: int | None = option(
        None, "classes of images the model tells apart (default: as many as the data has)", group="work", at_least=1
    )
    norm: str | None = option(
        None, "normalisation (image models)", group="work", choices=("batch", "syncbatch", "group")
    )
    seed: int = option(0, "seeds weights, shuffling and noise", group="work", at_least=0)

    strategy: str | None = option(
        None,
        "how to split the work; paralab strategies lists when to use each and what it costs",
        group="division",
        choices=tuple(STRATEGIES),
        aliases=ALIASES,
    )
    layout: Layout | None = option(None, "exact division, such as dp2.tp2.pp2/zero1/1f1b/mb4/sp", group="division")
    nproc: int | None = option(None, "processes, one per device", group="division", at_least=1, at_most=MOST_RANKS)
    global_batch_size: int | None = option(
        None, "samples per optimizer step, over all processes", group="division", at_least=1, at_most=10**7
    )
    accumulation: int = option(1, "backward passes per optimizer step", group="division", at_least=1, at_most=10**5)
    engine: str = option("auto", "what runs the step; auto follows the launcher", group="division", choices=ENGINES)
    ds_config: str | None = option(
        None, "DeepSpeed configuration, such as ds_configs/zero3.json", group="division", metavar="FILE"
    )
    timeout_s: float = option(
        1800.0, "seconds a rank waits for another one", group="division", above=0, at_most=_A_YEAR_S
    )
    force: bool = option(False, "start also where the memory of this machine does not suffice", group="division")
    debug_collectives: str | None = option(
        None,
        "compare every collective over all ranks, name what differs, write flight recordings here (slow)",
        group="division",
        metavar="DIR",
    )

    steps: int = option(20, "optimizer steps, warm-up not counted", group="steps", at_least=1)
    warmup: int = option(3, "steps run first and left out of the timing", group="steps", at_least=0)
    out: str | None = option(None, "append the result to this CSV file", group="steps", metavar="FILE")

    optimizer: str = option("adamw", "fused AdamW, or SGD with momentum", group="optimizer", choices=("adamw", "sgd"))
    # learning rate, betas, weight decay, clipping and the floor of the schedule: Brown et al. 2020, appendix B
    learning_rate: float = option(6e-4, "peak learning rate (sgd wants about 0.1)", group="optimizer", at_least=0)
    weight_decay: float = option(0.1, "decoupled, on matrices only", group="optimizer", at_least=0)
    betas: tuple[float, float] = option((0.9, 0.95), "of adamw", group="optimizer", at_least=0, below=1)
    eps: float = option(1e-8, "of adamw, added to the root of the second moment", group="optimizer", above=0)
    momentum: float = option(0.9, "of sgd", group="optimizer", at_least=0, below=1)
    clip_norm: float | None = option(
        1.0, "largest norm of the gradient over all ranks; none: no clipping", group="optimizer", above=0
    )
    lr_schedule: str = option(
        "cosine", "of the learning rate after its warm-up", group="optimizer", choices=("cosine", "constant")
    )
    lr_warmup_steps: int = option(0, "steps of linear growth to the peak", group="optimizer", at_least=0)
    min_lr_ratio: float = option(
        0.1, "where cosine ends, as a part of the peak", group="optimizer", at_least=0, at_most=1
    )

    precision: str = option(
        "fp32",
        "of the arithmetic; weights stay fp32 (fp64 all through, for parity)",
        group="memory and speed",
        choices=("fp32", "bf16", "fp16", "fp64"),
    )
    checkpointing: str = option(
        "none",
        "recompute activations: of no block, of all, or of every N-th",
        group="memory and speed",
        pattern="none|full|[1-9][0-9]*",
        metavar="none|full|N",
    )
    compile: str = option(
        "none",
        "torch.compile of each block, in one of its modes",
        group="memory and speed",
        choices=COMPILE_MODES,
        aliases={"false": "none", "true": "default"},
        metavar="|".join(COMPILE_MODES),
    )
    channels_last: bool = option(False, "memory format of image tensors", group="memory and speed")
    threads: int | None = option(None, "CPU threads per process", group="memory and speed", at_least=1)
    backend: str | None = option(None, "of the collectives", group="memory and speed", choices=("gloo", "nccl"))
    loader_workers: int = option(
        0, "processes that prepare batches, per rank", group="memory and speed", at_least=0, at_most=256
    )
    pin_memory: bool | None = option(
        None, "batches in page-locked memory; default: with GPUs", group="memory and speed"
    )
    non_blocking: bool | None = option(
        None, "copy batches while computing; default: with GPUs", group="memory and speed"
    )
    cast_on_device: bool = option(
        False, "copy bytes and tokens as they are stored, make numbers of them there", group="memory and speed"
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
        """Refuse, before any process is started, a layout that cannot run as asked."""
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
        if self.checkpointing == "none":
            return None
        return 1 if self.checkpointing == "full" else int(self.checkpointing)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (str, int, float, bool, list, None) by name; `from_dict` is its inverse."""
        return {declared.name: _plain(getattr(self, declared.name)) for declared in fields(self)}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any], *, source: str = "") -> ConfigT:
        """Make a config from plain values, as a file holds them; what is absent has its default.

        source: the file's name, for messages.
        Raises: ConfigError for an unknown key at any depth, and whatever the class itself raises.
        """
        return cls(**_read_table(cls, values, source=source))

    def save(self, path: str | Path) -> None:
        """Write every value to a TOML or JSON file (by its suffix) that `--config` reads back."""
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
    """Read flags over a configuration file over defaults.

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
    for declared in fields(config):
        if declared.name in given:
            values[declared.name] = _convert(declared, given[declared.name], where=_flag(declared))
    return config(**values)


def make_parser(
    config: type[RunConfig] = RunConfig, *, prog: str = "paralab run", description: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser with one flag per option, in groups. Flags that are not given are None.

    Values stay text: `resolve` converts them, so that flags and files have the same checks and messages.
    """
    parser = _Parser(prog=prog, usage="%(prog)s [OPTION...]", description=description)
    parser.add_argument("--config", metavar="FILE", help="TOML, YAML or JSON file with any of these options")
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
    text = meta["help"] if declared.default is None else f"{meta['help']} (default: {_text(declared.default)})"
    text = text.replace("%", "%%")
    if bool in _kinds(declared):
        group.add_argument(_flag(declared), action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    metavar = meta["metavar"] or "|".join((*meta["choices"], *meta["aliases"])) or _kinds(declared)[0].__name__.upper()
    group.add_argument(_flag(declared), metavar=_METAVARS.get(metavar, metavar), help=text)


_METAVARS = {"STR": "NAME", "INT": "N", "FLOAT": "X", "TUPLE": "X,X"}


def _flag(declared: Field) -> str:
    return "--" + declared.name.replace("_", "-")


def _kinds(declared: Field) -> tuple[type, ...]:
    """Return the types an option may have: `int | None` gives (int, NoneType), `tuple[float, float]` (tuple,)."""
    annotation = declared.type
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(get_origin(part) or part for part in parts)


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
        known = (*meta["choices"], *meta["aliases"])
        raise ConfigError(f"{where} {value} is unknown{did_you_mean(value, known)}: use one of {', '.join(known)}")
    return value


def _element(declared: Field) -> type:
    """Return the type of what a list option holds: `list[int] | None` gives int."""
    parts = get_args(declared.type) if get_origin(declared.type) in (Union, types.UnionType) else (declared.type,)
    return next(get_args(part)[0] for part in parts if get_origin(part) is list)


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


def _plain(value: Any) -> Any:
    if isinstance(value, Layout):
        return str(value)
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _to_toml(config: RunConfig) -> str:
    """Write `key = value` lines under a comment per group. None, which TOML lacks, is left out or "none"."""
    lines, group = [], None
    for declared in fields(config):
        value = _plain(getattr(config, declared.name))
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
