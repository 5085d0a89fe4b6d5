"""Reference pages from declarations: `python -m benchmarks.document options > docs/options.md`, and so for columns.

Options are read from the configurations of the commands, columns from `RunRecord`. A test fails when a page is not
what this prints.
"""

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from typing import Any, get_args, get_origin, get_type_hints

from benchmarks.overhead import OverheadConfig
from benchmarks.peers import PeersConfig
from benchmarks.run import CaseConfig
from benchmarks.scaling import ScaleConfig
from benchmarks.sweep import SweepConfig
from benchmarks.tour import TourConfig
from parallel.commands.verify import VerifyConfig
from parallel.options.config import RunConfig, make_parser
from parallel.records.row import GROUPS, RENAMED, SCHEMA, RunRecord
from parallel.training.options import TrainConfig

# the commands whose options go beyond those of every run, and what they build on
COMMANDS: dict[str, tuple[type[RunConfig], type[RunConfig]]] = {
    "paralab run": (CaseConfig, RunConfig),
    "paralab tour": (TourConfig, RunConfig),
    "paralab verify": (VerifyConfig, RunConfig),
    "paralab train": (TrainConfig, RunConfig),
    "paralab bench": (SweepConfig, CaseConfig),
    "paralab scale": (ScaleConfig, CaseConfig),
    "paralab peers": (PeersConfig, RunConfig),
    "paralab overhead": (OverheadConfig, RunConfig),
}
# the end of a column's name, and the unit that it stands for; the first that fits
UNITS = {
    "mfu": "0 to 1",
    "hfu": "0 to 1",
    "straggler_ratio": "1 and more",
    "_per_s_per_device": "1/s",
    "_mbit_per_s": "Mbit/s",
    "_per_s": "1/s",
    "tflops_per_device": "TFLOP/s",
    "_share": "0 to 1",
    "_bytes": "bytes",
    "_mhz": "MHz",
    "_px": "pixels",
    "_s": "s",
    "_w": "W",
    "_c": "°C",
    "_j": "J",
}

OPTIONS_HEAD = """\
# Options

What `--help` says of the commands that run something, made by `python -m benchmarks.document options`. Each option is a
flag and, with `_` in place of `-`, a key of the file that `--config FILE` names (TOML, YAML or JSON). A flag goes over
the file, the file over the default. Where there is no default, what suits the model and the machine is chosen.

`{commands}` take all of the first list. The other commands have few options: see their `--help`.
"""
COLUMNS_HEAD = """\
# Columns of result files

Schema {schema}, made by `python -m benchmarks.document columns` from `parallel/records/row.py`. An empty cell is
unknown. Over ranks, times and memory are the largest, utilisation is the mean, and throughput is that of the global
batch over the slowest rank."""


def options() -> str:
    """Return the page of options: those of every run, then what each command adds or has another default for."""
    lines = [OPTIONS_HEAD.format(commands="`, `".join(COMMANDS)), "## Every run", *_tables(RunConfig, None)]
    for command, (config, base) in COMMANDS.items():
        more = " and those of `paralab run`" if base is CaseConfig else ""
        lines += [
            "",
            f"## {command}",
            "",
            f"Beside those above{more}, or with another default:",
            *_tables(config, base),
        ]
    return "\n".join(lines) + "\n"


def _tables(config: type[RunConfig], base: type[RunConfig] | None) -> Iterator[str]:
    """Yield a table for each group; base: leave out what is declared alike there."""
    known = {declared.name: _declared(declared) for declared in fields(base)} if base else {}
    parser = make_parser(config)
    written = {action.dest: action for action in parser._actions}
    groups: dict[str, list[str]] = {}
    for declared in fields(config):
        if known.get(declared.name) != _declared(declared):
            action = written[declared.name]
            flag = " ".join(filter(None, [action.option_strings[0], str(action.metavar or "")]))
            row = f"| {_code(flag)} | {_default(declared)} | {_cell(declared.metadata['help'])} |"
            groups.setdefault(declared.metadata["group"], []).append(row)
    for group, rows in groups.items():
        yield from ("", f"**{_sentence(group)}**", "", "| option | default | meaning |", "|---|---|---|", *rows)


def _declared(declared: Field) -> tuple[Any, ...]:
    return declared.default, declared.metadata["help"], declared.metadata["choices"]


def _default(declared: Field) -> str:
    value = declared.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return _code(",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value))


def columns() -> str:
    """Return the page of columns, a table for each group."""
    types = get_type_hints(RunRecord)
    lines = [COLUMNS_HEAD.format(schema=SCHEMA)]
    for column in fields(RunRecord):
        if column.name in GROUPS:
            lines += ["", f"## {_sentence(GROUPS[column.name])}", ""]
            if column.name.startswith("comm_"):
                lines += [*_communication(), ""]
            lines += ["| column | holds | unit | meaning |", "|---|---|---|---|"]
        held, unit = _type(types[column.name]), _unit(column.name)
        lines.append(f"| `{column.name}` | {held} | {unit} | {_cell(column.metadata['meaning'])} |")
    lines += ["", "## Renamed", "", "Files of older schemas are read; what they called otherwise is read as:", ""]
    lines += [f"- `{old}`: `{new}`" for old, new in sorted(RENAMED.items())]
    return "\n".join(lines) + "\n"


def _communication() -> list[str]:
    """Return what the docstring of `RunRecord` says of it."""
    words = (RunRecord.__doc__ or "").partition("Of communication, ")[2].split()
    return textwrap.wrap(_sentence(" ".join(words)), 118)


def _type(annotation: Any) -> str:
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    if get_origin(annotation) is not None and all(isinstance(kind, str) for kind in kinds):
        return ", ".join(kinds)
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return ", ".join(names[kind] if kind in names else ", ".join(get_args(kind)) for kind in kinds)


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"options": options, "columns": columns}


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or argv[0] not in PAGES:
        print(f"usage: python -m benchmarks.document {'|'.join(PAGES)}", file=sys.stderr)
        return 2
    sys.stdout.write(PAGES[argv[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
