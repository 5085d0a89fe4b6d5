"""What a model takes at a long sequence length, from counts at short ones, where it works token by token."""

from collections.abc import Sequence
from dataclasses import fields, replace
from math import isclose, prod
from typing import Any

from paralab.planning.parts import Counted

PROBED = (8, 16, 24, 40)  # lengths: three give a polynomial of second degree, as attention is, and one checks it


def by_tokens(counts: Sequence[Counted]) -> bool:
    """Return whether more tokens are more operations, which makes a count at a long length slow."""
    few, more = (sum(block.launches for block in one.blocks) for one in counts)
    return more > few


def at_length(counts: Sequence[Counted], length: int) -> Counted | None:
    """Return what a model takes at a length. counts: at those of `PROBED`.

    None where any number is no polynomial of second degree in the length.
    """
    kinds = {tuple(kept is None for kept in (one.kept_in_16, one.kept_of_cast)) for one in counts}
    if len(kinds) > 1 or len({len(one.blocks) for one in counts}) > 1:
        return None

    names = ("first", "last", "kept_in_16", "kept_of_cast")
    first, last, in_16, cast = (_part_at([getattr(one, name) for one in counts], length) for name in names)
    blocks = tuple(_part_at(block, length) for block in zip(*(one.blocks for one in counts), strict=True))
    if None in (first, last, *blocks) or (in_16, cast).count(None) != next(iter(kinds)).count(True):
        return None
    return replace(counts[0], first=first, last=last, blocks=blocks, kept_in_16=in_16, kept_of_cast=cast)


def _part_at(parts: Sequence[Any], length: int) -> Any:
    """Return a part whose numbers follow from those of the same part at the lengths of `PROBED`; else None."""
    if parts[0] is None:
        return None
    names = [field.name for field in fields(parts[0])]
    values = {name: [getattr(part, name) for part in parts] for name in names}
    *known, checked = PROBED
    if any(not isclose(_polynomial(of[:-1], known, checked), of[-1], rel_tol=1e-9) for of in values.values()):
        return None
    return replace(parts[0], **{name: _polynomial(of[:-1], known, length) for name, of in values.items()})


def _polynomial(values: Sequence[float], at: Sequence[int], length: int) -> float:
    """Return the polynomial through these values, at a length (Lagrange)."""
    each = (
        value * prod((length - other) / (one - other) for other in at if other != one)
        for value, one in zip(values, at, strict=True)
    )
    return sum(each)
