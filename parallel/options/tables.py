"""The options of a run as the table of a configuration file, read and written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import Field
from typing import Any

from paralab.errors import ConfigError
from paralab.options.arguments import hint
from paralab.options.files import given_elsewhere
from paralab.options.option import flag_of
from paralab.options.values import convert


def read_table(options: Sequence[Field], values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Convert the values of a file, or of a dict. Raises: ConfigError for an unknown key at any depth."""
    declared_by_name = {declared.name: declared for declared in options}
    where = f" in {source}" if source else ""
    converted = {}
    for key, value in values.items():
        if key not in declared_by_name or (isinstance(value, Mapping) and value):
            path, name = _innermost(str(key), value)
            meant = hint(name, [flag_of(declared) for declared in declared_by_name.values()])
            meant = meant.replace("--", "", 1).replace("-", "_") if "--" in meant else meant
            nested = ", and keys are not nested" if path != name else ""
            instead = given_elsewhere(values, source) or f"{meant}{nested}: see paralab run --help for the options"
            raise ConfigError(f"key {path!r}{where} is unknown{instead}")
        converted[key] = convert(declared_by_name[key], value, where=f"{key}{where}")
    return converted


def _innermost(key: str, value: Any) -> tuple[str, str]:
    """Return the dotted path of the first value inside nested tables, and its last part."""
    path = [key]
    while isinstance(value, Mapping) and value:
        key, value = next((str(name), inner) for name, inner in value.items())
        path.append(key)
    return ".".join(path), key


def to_toml(options: Sequence[Field], values: Mapping[str, Any]) -> str:
    """Write `key = value` lines under a comment per group. None, which TOML lacks, is left out or "none"."""
    lines, group = [], None
    for declared in options:
        value = values[declared.name]
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
