"""Configuration files: TOML, YAML and JSON, read so that nothing in them has a second meaning.

A key that occurs twice is refused with its line, since all three formats would take one of the two without a word
(TOML refuses it itself). YAML is read as version 1.2 has it, where yes, on, 1:30 and 2026-01-31 are text; 010, which
is eight in version 1.1 and ten in 1.2, is refused. Imports neither torch nor PyYAML before it is needed.
"""

import json
import json.decoder
import json.scanner
import re
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from paralab.console.inputs import read_text
from paralab.errors import ConfigError


def load(path: str | Path) -> dict[str, Any]:
    """Read a TOML, YAML or JSON file (by its ending) into a dict. Raises: ConfigError."""
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": _parse_toml,
        ".yaml": _parse_yaml,
        ".yml": _parse_yaml,
        ".json": _parse_json,
    }
    if path.suffix.lower() not in readers:
        raise ConfigError(f"configuration file {path} has an unknown ending: use .toml, .yaml or .json")
    try:
        values = readers[path.suffix.lower()](read_text(path))
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"configuration file {path} is nested too deeply: write lines of key = value") from error
    except UnicodeDecodeError:
        raise ConfigError(f"configuration file {path} is not UTF-8 text: save it again as UTF-8") from None
    except ValueError as error:  # TOMLDecodeError and JSONDecodeError are ValueErrors
        raise ConfigError(f"configuration file {path} is not valid: {error}") from error
    if values is None:  # an empty YAML file
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration file {path} holds a {type(values).__name__}: write lines of key = value")
    return values


def given_elsewhere(values: Mapping[str, Any], source: str) -> str:
    """Return how to give a file of another program, told by its keys, or an empty string."""
    if "distributed_type" in values or "compute_environment" in values:
        return f": {source} is a file of Accelerate's, type accelerate launch --config_file {source} before the program"
    if "zero_optimization" in values or "train_micro_batch_size_per_gpu" in values:
        return f": {source} is a file of DeepSpeed's, type --ds-config {source}"
    return ""


def _twice(key: object, line: int) -> ValueError:
    return ValueError(f"key {str(key)!r} occurs twice, the second time in line {line}: remove one of them")


def _parse_toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def _parse_json(text: str) -> Any:
    try:
        return _Decoder().decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}{_not_of_json(text, error.pos)}") from None


def _not_of_json(text: str, at: int) -> str:
    """Return a hint at what other languages have there and JSON has not, or an empty string."""
    rest = text[at:].lstrip()
    before = text[: at + text[at:].startswith(",")].rstrip()
    if rest.startswith(("//", "/*", "#")):
        return ": JSON has no comments, remove this one"
    if before.endswith(",") and rest.lstrip(",").lstrip().startswith(("}", "]")):
        return ": remove the comma before the bracket that closes"
    if rest.startswith("'"):
        return ": write double quotes"
    if rest.startswith(("True", "False", "None")):
        return ": write true, false or null"
    return ""


class _Decoder(json.JSONDecoder):
    """The decoder of the standard library, with objects that refuse a second value of a key."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = self._object
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]
        self._inner: list[tuple[int, int]] = []  # where the objects lie that are read already

    def _object(self, start: tuple[str, int], strict: bool, scan_once: Any, *_: Any) -> tuple[dict[str, Any], int]:
        text, begin = start  # just after the brace
        pairs, end = json.decoder.JSONObject(start, strict, scan_once, None, lambda pairs: pairs)  # type: ignore[attr-defined]
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise _twice(key, self._line_of_second(key, text, begin, end))
            values[key] = value
        self._inner.append((begin, end))
        return values, end

    def _line_of_second(self, key: str, text: str, begin: int, end: int) -> int:
        written = re.compile(re.escape(json.dumps(key)) + r"\s*:")
        places = [match.start() for match in written.finditer(text, begin, end)]
        own = [place for place in places if not any(a <= place < b for a, b in self._inner)]
        return text.count("\n", 0, own[1] if len(own) > 1 else begin) + 1


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_yaml_loader())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


@cache
def _yaml_loader() -> Any:
    """Return a loader of plain values after the core schema of YAML 1.2 (section 10.3.2)."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict:
            seen = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.tag == "tag:yaml.org,2002:merge":
                    continue
                name = self.construct_object(key, deep=True)
                if isinstance(name, (list, dict)):
                    raise ValueError(f"line {key.start_mark.line + 1} has a list or table for a key: write a name")
                if name in seen:
                    raise _twice(name, key.start_mark.line + 1)
                seen.add(name)
            return super().construct_mapping(node, deep=deep)

        def construct_integer(self, node: Any) -> int:
            return int(node.value, 0)

        def construct_unclear(self, node: Any) -> int:
            value = node.value
            raise ValueError(
                f"{value} in line {node.start_mark.line + 1} is octal to some programs and decimal to others: "
                f"write {value.lstrip('+-0') or 0} or 0o{value.lstrip('+-0') or 0}"
            )

    Loader.yaml_implicit_resolvers = {}  # those of version 1.1

    def resolve(kind: str, pattern: str, first: str) -> None:
        Loader.add_implicit_resolver(kind, re.compile(f"(?:{pattern})$"), list(first))

    resolve("tag:yaml.org,2002:null", r"~|null|Null|NULL", "~nN")
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"$"), [""])
    resolve("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF")
    resolve("!unclear", r"[-+]?0[0-9]+", "-+0")
    resolve("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789")
    number = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    resolve("tag:yaml.org,2002:float", number + r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789.")
    resolve("tag:yaml.org,2002:merge", "<<", "<")
    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
    Loader.add_constructor("!unclear", Loader.construct_unclear)
    return Loader
