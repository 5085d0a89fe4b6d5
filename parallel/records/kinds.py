"""Which values the fields of a record take, read from its annotations."""

import types
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a record, without the `| None`."""
    hints = get_type_hints(kind)
    return {field.name: _without_none(hints[field.name]) for field in fields(kind)}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def value_kind(hint: Any) -> tuple[type, Sequence[str]]:
    """Return the type behind an annotation and, where it is a Literal, the values that are allowed."""
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, ())
