"""The repeated blocks of a model: which modules they are, and which of them a module or parameter lies in.

Their names are those of `ModelSpec.blocks`; a model that `ModelSpec.on_meta` made carries them along.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def blocks_of(part: "nn.Module") -> "dict[int, nn.Module]":
    """Return the blocks that a model, or a pipeline stage of it, holds: by number in the whole model."""
    from paralab.models.spec import StandIn

    held = {name: module for name, module in part.named_modules() if not isinstance(module, StandIn)}
    names: Sequence[str] = part.block_names  # type: ignore[assignment]  # an attribute of ours on any module
    return {number: held[name] for number, name in enumerate(names) if name in held}


def block_of(name: str, blocks: Sequence[str]) -> int | None:
    """Return the number of the block that a module or parameter lies in, by its full name; None outside of blocks.

    blocks: the full names of all blocks, in order.
    """
    numbers, place = _numbers(tuple(blocks)), name
    while place and place not in numbers:
        place = place.rpartition(".")[0]
    return numbers.get(place)


@lru_cache(maxsize=8)
def _numbers(blocks: tuple[str, ...]) -> dict[str, int]:
    return {name: number for number, name in enumerate(blocks)}
