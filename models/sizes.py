"""Sizes that are no presets, such as 16x2048x32/8f8192: how a config is read from such a word, and written as one.

A word begins with dimensions, x between them; what differs from the usual model of these dimensions follows, each
number behind a letter of its own. Models say which fields these are, by `dims` and a table of letters.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from paralab.errors import ConfigError, did_you_mean
from paralab.models.configs import C

if TYPE_CHECKING:
    from paralab.models.spec import ModelSpec

# what others call sizes that are presets here
_ELSEWHERE = {
    "gpt2": {"gpt2": "124m", "gpt2-small": "124m", "gpt2-medium": "355m", "gpt2-large": "774m", "gpt2-xl": "1.5b"}
    | {"117m": "124m", "345m": "355m", "762m": "774m", "1542m": "1.5b", "1558m": "1.5b"},
    "diffusion": {f"{begin}{size}": f"dit-{size}/2" for size in ("s", "b", "l", "xl") for begin in ("", "dit-")},
}
_WHOLE, _DECIMAL = r"[1-9]\d*", r"\d+(?:\.\d+)?(?:e-?\d+)?"


def dims(*names: str) -> str:
    """Return the pattern of whole numbers with x between them, each in a group with the name of its field."""
    return "x".join(map(whole, names))


def whole(name: str) -> str:
    """Return the pattern of a whole number from 1, in a group with the name of its field."""
    return f"(?P<{name}>{_WHOLE})"


def decimal(name: str) -> str:
    """Return the pattern of a number from 0 such as 1e-6, in a group with the name of its field."""
    return f"(?P<{name}>{_DECIMAL})"


def letters(kind: type, table: Mapping[str, str]) -> str:
    """Return the pattern of what may follow the dimensions, in this order. table: letter -> field of the config."""
    of = {field.name: whole if field.type is int else decimal for field in fields(kind)}
    return "".join(f"(?:{letter}{of[name](name)})?" for letter, name in table.items())


def numbers(match: re.Match[str], kind: type) -> dict[str, Any]:
    """Return what a word says of the fields of a dataclass; left out is what it does not say.

    Raises: ValueError for a number that is too large for a float.
    """
    read = {field.name: field.type if field.type in (int, bool) else float for field in fields(kind)}
    found = {name: read[name](text) for name, text in match.groupdict().items() if text is not None and name in read}
    for name, number in found.items():
        if not math.isfinite(number):
            raise ValueError(f"{name}={match[name]} is too large")
    return found


def written(config: Any, usual: Any, table: Mapping[str, str]) -> str:
    """Return the letters and numbers of the fields in which a config differs from the usual one of its dimensions."""
    return "".join(
        f"{letter}{number_text(getattr(config, name))}"
        for letter, name in table.items()
        if getattr(config, name) != getattr(usual, name)
    )


def number_text(number: float) -> str:
    """Return a number as a word has it: 8192 for 8192.0, 1e-06 for a millionth."""
    return str(int(number)) if number == int(number) else repr(number)


def preset_of(config: C, presets: Mapping[str, C]) -> str | None:
    """Return the name of the preset with the parameters of a config, whatever its window; None where none has them."""
    return next((name for name, preset in presets.items() if _same(config, preset)), None)


def _same(config: Any, preset: Any) -> bool:
    return replace(config, seq_len=preset.seq_len) == preset


def config_of_size(spec: "ModelSpec[C]", size: str) -> C:
    """Return the config of a preset, or of a size of the user's own. Raises: ConfigError."""
    try:
        return spec.config(size)
    except KeyError:
        hint, form = did_you_mean(_named_here(spec.name, size), spec.sizes), spec.custom_form
        use = f"use one of {', '.join(spec.sizes)}" + (f", or {form}" if form else "")
        raise ConfigError(f"--size {size} is unknown for {spec.name}{hint}: {use}") from None
    except ValueError as error:
        raise ConfigError(f"--size {size}: {error}: use {spec.custom_form}") from None


def _named_here(model: str, size: str) -> str:
    """Return what a size may be called here that others call otherwise, as gpt2-xl or meta-llama/Llama-3.1-70B."""
    word, elsewhere = size.lower().replace("_", "-"), _ELSEWHERE.get(model, {})
    for tried in (word, f"{model}-{word}", word.rpartition("/")[2]):
        if tried in elsewhere:
            return elsewhere[tried]
    parameters = re.findall(r"\d[\dx.]*[bm]\b", word)
    return parameters[-1] if parameters else word.removeprefix(model).removeprefix("-")
