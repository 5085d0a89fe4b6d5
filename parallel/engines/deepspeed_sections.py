"""Sections of a DeepSpeed file: every key is known and of its kind, or refused."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paralab.engines.deepspeed_keys import (
    Decided,
    Handed,
    LeftOut,
    Off,
    Rule,
)
from paralab.errors import ConfigError, did_you_mean
from paralab.options.files import given_elsewhere

AUTO = "auto"


def check_keys(values: Mapping[str, Any], rules: Mapping[str, Rule], *, where: str, source: str) -> None:
    """Raise ConfigError for a key that is unknown, that would change the step, or whose value is of another kind."""
    for key, value in values.items():
        if key not in rules:
            if not where and "zero_optimization" not in values and (elsewhere := given_elsewhere(values, source)):
                raise ConfigError(f"key {key!r} in {source} is unknown{elsewhere}")
            place = f"of {where} in {source}" if where else f"in {source}"
            raise ConfigError(f"key {key!r} {place} is unknown{did_you_mean(key, rules)}: correct or remove it")
        rule, path = rules[key], f"{where}.{key}" if where else key
        if key == "enabled" and value not in (True, False, None, AUTO):
            raise ConfigError(f"{path} in {source} is {text(value)}: true or false is needed")
        names = rule.keys
        if not names:
            pass
        elif isinstance(value, Mapping):
            inner = rule.keys if isinstance(rule, Handed) else dict.fromkeys(names, LeftOut())
            check_keys(value, inner, where=path, source=source)
        elif value not in (None, False, AUTO):
            raise ConfigError(f"{path} in {source} is {text(value)}: a section with keys is needed")
        if isinstance(rule, Off) and is_on(value, rule):
            raise ConfigError(f"{path} in {source} is {text(value)}, which is not supported: {rule.instead}")
        only = rule.only if isinstance(rule, (Handed, Decided)) else ()
        if only and (isinstance(value, bool) or value not in (None, AUTO, *only)):
            able = ", ".join(map(text, only))
            raise ConfigError(f"{path} in {source} is {text(value)}, which is not supported: use one of {able}")


def is_on(value: Any, rule: Off | LeftOut) -> bool:
    """Return whether a value or a section does anything: by its `enabled`, at any depth, where it has one."""
    if isinstance(value, Mapping):
        switches = list(_switches(value))
        return any(is_on(inner, rule) for inner in (switches or ("enabled" not in rule.keys) * list(value.values())))
    unless = rule.unless if isinstance(rule, Off) else ()
    return value not in (None, False, AUTO, 0, "", *unless)


def _switches(section: Mapping[str, Any]) -> Iterator[Any]:
    if "enabled" in section:
        yield section["enabled"]
        return
    for value in section.values():
        if isinstance(value, Mapping):
            yield from _switches(value)


def section_of(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section, empty where it is not there or "auto" (`check_keys` refuses what else it may be)."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def params_of(section: Mapping[str, Any], known: Iterable[str], *, where: str, source: str) -> Mapping[str, Any]:
    """Return the section `params` of a section. Raises: ConfigError where it is none, or has a key that is unknown."""
    rules = {"type": LeftOut(), "legacy_fusion": LeftOut(), "params": LeftOut(keys=frozenset(known))}
    check_keys(section, rules, where=where, source=source)
    return section_of(section, "params")


def enabled(values: Mapping[str, Any], key: str) -> bool | None:
    """Return what a section of a precision says, None where it says nothing or "auto"."""
    said = section_of(values, key).get("enabled", AUTO)
    return None if said == AUTO else bool(said)


def text(value: Any) -> str:
    """Return a value as JSON has it, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
