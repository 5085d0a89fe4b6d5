"""The repeated blocks of a model, and which of them a module or parameter lies in."""

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn


def blocks_of(part: "nn.Module") -> "nn.ModuleDict":
    """Return the blocks that a model, or a pipeline stage of it, holds: by number, as text."""
    return cast("nn.ModuleDict", part.blocks)


def block_of(name: str) -> int | None:
    """Return the number of the block that a module or parameter lies in, by its full name; None outside of blocks."""
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "blocks" and rest else None
