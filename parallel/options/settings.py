"""Every option of a command with its value and where that came from, as a table or as JSON. Imports no torch."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from paralab.layout import Layout

# each kind of origin, in the words of the table
_WORDS = {
    "flag": "flag",
    "file": "file",
    "preset": "preset",
    "run": "continued run",
    "weights": "weights",
    "launcher": "launcher",
    "chosen": "chosen by paralab",
    "default": "default",
}
_WIDTHS = (24, 30, 24)  # of the columns: option, value, origin; 80 with the blanks between them


@dataclass(frozen=True)
class Origin:
    """Where a value came from. name: that of the file, preset, folder or launcher; empty for the other kinds."""

    kind: Literal["flag", "file", "preset", "run", "weights", "launcher", "chosen", "default"]
    name: str = ""

    def __str__(self) -> str:
        return f"{_WORDS[self.kind]} {self.name}".strip()


DEFAULT, CHOSEN = Origin("default"), Origin("chosen")


@dataclass(frozen=True)
class Setting:
    """One option. group: its title in --help. values: one for each value that the cases of a command have.

    absent: what stands in the table for a value that is None.
    """

    name: str
    group: str
    values: Sequence[Any]
    origin: Origin
    absent: str = "none"

    @property
    def shown(self) -> str:
        return ", ".join(self.absent if value is None else shown(value) for value in self.values)


def shown(value: Any) -> str:
    """Return a value as a flag takes it; on or off for one that is true or false."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def plain(value: Any) -> Any:
    """Return a value as JSON and TOML hold it: a layout becomes text, a tuple a list."""
    if isinstance(value, Layout):
        return str(value)
    return [plain(part) for part in value] if isinstance(value, (tuple, list)) else value


def table(settings: Sequence[Setting]) -> str:
    """Return lines of at most 80 columns: option, value and origin, in the groups of --help."""
    lines = _row("option", "value", "from")
    for group in dict.fromkeys(setting.group for setting in settings):
        lines += ["", group]
        for setting in (setting for setting in settings if setting.group == group):
            lines += _row(f"  --{setting.name.replace('_', '-')}", setting.shown, str(setting.origin))
    return "\n".join(lines)


def _row(*cells: str) -> list[str]:
    wrapped = [textwrap.wrap(cell, width, break_on_hyphens=False) for cell, width in zip(cells, _WIDTHS, strict=True)]
    padded = zip_longest(*wrapped, fillvalue="")
    return [" ".join(part.ljust(width) for part, width in zip(row, _WIDTHS, strict=True)).rstrip() for row in padded]


def as_json(command: str, settings: Sequence[Setting]) -> str:
    """Return a JSON object: the command, and by option its source, the name of it, and value, or values if several."""
    options = {}
    for setting in settings:
        values = [plain(value) for value in setting.values]
        named = {"name": setting.origin.name} if setting.origin.name else {}
        found = {"value": values[0]} if len(values) == 1 else {"values": values}
        options[setting.name] = {**found, "source": setting.origin.kind, **named}
    return json.dumps({"command": command, "options": options}, indent=2)
