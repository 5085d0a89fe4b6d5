"""Values of options, from the text of a flag or from what a file holds: converted, and held to what is declared."""

import math
import re
from collections.abc import Mapping
from dataclasses import Field
from decimal import Decimal
from typing import Any

from paralab.errors import ConfigError, did_you_mean
from paralab.layout import Layout
from paralab.options.arguments import MOST
from paralab.options.numbers import meant, number_of, whole_of
from paralab.options.option import element_type, types_of


def convert(declared: Field, value: Any, *, where: str) -> Any:
    """Return a value of the option's type, made from text or from what a file holds.

    where: what to call the option in messages, a flag or a key with its file.

    Raises: ConfigError for a value that is not allowed, LayoutError for a layout that does not parse.
    """
    kinds = types_of(declared)
    meta = declared.metadata
    if type(None) in kinds and (value is None or (value == "none" and "none" not in meta["choices"])):
        return None
    if isinstance(value, bool) and str(value).lower() in meta["aliases"]:  # as a file has it
        value = str(value).lower()
    if kinds[0] is list:
        made = _CONVERTERS[element_type(declared)]
        value = [_known(meta, made(word, where), where) for word in _words(value, where)]
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
    got = f"{number:g}" if isinstance(number, float) else f"{Decimal(number):.{'0f' if abs(number) < 10**15 else '5e'}}"
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
    if isinstance(value, str) and (number := whole_of(value)) is not None:
        return number
    raise ConfigError(f"{where} is {_short(value)}{meant(str(value), whole=True)}: a whole number is needed")


def _to_float(value: Any, where: str) -> float:
    try:
        number = number_of(value) if isinstance(value, str) else value
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return float(number) + 0.0  # there is no negative zero
    except OverflowError:
        pass
    raise ConfigError(f"{where} is {_short(value)}{meant(str(value))}: a number is needed")


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
