"""Declaring an option: one dataclass field from which its flag, its help, its key in files and its checks come."""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field
from typing import Any, Literal, Union, get_args, get_origin

MODEL, PARALLELISM, STEPS = "model and data", "parallelism", "steps and results"  # titles of groups of options
OPTIMIZER, MEMORY = "optimizer", "precision, memory and speed"


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
            "others": others or no_other,
            "form": form,
            "bounds": (at_least, above, at_most, below),
            "pattern": pattern,
            "metavar": metavar,
            "unset": unset,
        },
    )


def no_other(text: str) -> None:
    """Read no words but the choices."""
    return None


def flag_of(declared: Field) -> str:
    """Return the flag of an option: its name, with `-` for `_`."""
    return "--" + declared.name.replace("_", "-")


def types_of(declared: Field) -> tuple[type, ...]:
    """Return the types an option may have: `int | None` gives (int, NoneType), `tuple[float, float]` (tuple,)."""
    annotation = declared.type
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(_origin(part) for part in parts)


def element_type(declared: Field) -> type:
    """Return the type of what a list option holds: `list[int] | None` gives int."""
    parts = get_args(declared.type) if get_origin(declared.type) in (Union, types.UnionType) else (declared.type,)
    return next(_origin(get_args(part)[0]) for part in parts if get_origin(part) is list)


def _origin(annotation: Any) -> type:
    """Return the type of the values of an annotation: `str` for words, `list` for `list[int]`."""
    origin = get_origin(annotation)
    return str if origin is Literal else origin or annotation
