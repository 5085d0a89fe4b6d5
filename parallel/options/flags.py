"""The flags of a command: read over a configuration file, which is read over the defaults."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn

from paralab.errors import ConfigError
from paralab.options.arguments import Parser, hint
from paralab.options.config import ConfigT, RunConfig
from paralab.options.files import load
from paralab.options.option import flag_of, types_of
from paralab.options.settings import Origin, shown
from paralab.options.tables import read_table
from paralab.options.values import convert


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
    values = read_table(fields(config), load(file), source=str(file)) if file else {}
    origins = dict.fromkeys(values, Origin("file", str(file)))
    for declared in fields(config):
        if declared.name in given:
            values[declared.name] = convert(declared, given[declared.name], where=flag_of(declared))
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
            words.append(flag_of(declared) if value else "--no-" + flag_of(declared)[2:])
        else:
            values = value if isinstance(value, tuple | list) else ("none" if value is None else value,)
            words += [flag_of(declared), ",".join(map(str, values))]
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
    if bool in types_of(declared):
        group.add_argument(flag_of(declared), action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    words = filter(None, (*meta["choices"], *meta["aliases"], meta["form"]))
    metavar = meta["metavar"] or "|".join(words) or types_of(declared)[0].__name__.upper()
    group.add_argument(flag_of(declared), metavar=_METAVARS.get(metavar, metavar), help=text)


_METAVARS = {"STR": "NAME", "INT": "N", "FLOAT": "X", "TUPLE": "X,X"}
