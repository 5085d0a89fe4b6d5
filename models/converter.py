"""What converts weights to and from Hugging Face transformers, and what such converters have in common.

A model with one names it in its spec: `hugging_face=lambda: import_module("paralab.models.llama_hf")`. Anything with
the attributes of `Converter` is one; those here are modules.
"""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from paralab.models.configs import ModelConfig

    C = TypeVar("C", bound=ModelConfig)
else:
    C = TypeVar("C")


class Converter(Protocol[C]):
    """Other names, other order, the same numbers: between a model and the one that transformers has of its kind."""

    MODEL_TYPE: str  # what the config.json of such a model calls it

    def config_from(self, theirs: "PreTrainedConfig") -> C:
        """Return our config of theirs. Raises: ValueError for a variant that computes something else."""

    def placed(self, tensors: Mapping[str, Tensor], config: C) -> dict[str, Tensor]:
        """Return their tensors, as they are, under our names or those of the parts that ours are made of.

        Raises: ValueError for one that is missing, that has no place in the model, or of another shape.
        """

    def take(self, tensors: Mapping[str, Tensor], config: C) -> dict[str, Tensor]:
        """Return our state in fp32, of the whole shapes that the model has. Raises: as in `placed`."""

    def to_transformers(self, config: C, state: Mapping[str, Tensor]) -> "PreTrainedModel":
        """Return their model in fp32, of a state by canonical names and of whole shapes."""


def check_values(theirs: "PreTrainedConfig", needed: Mapping[str, tuple[object, ...]], *, ours: str) -> None:
    """Raise ValueError where a value of their configuration is none of those with which it is the model called ours."""
    for key, allowed in needed.items():
        if getattr(theirs, key) not in allowed:
            raise ValueError(f"{key}={getattr(theirs, key)!r}, this {ours} has {key}={allowed[0]!r}")


def check_names(found: Mapping[str, Tensor], needed: Set[str], *, ours: str, besides: Set[str] = frozenset()) -> None:
    """Raise ValueError where a tensor is missing, or one is there that the model called ours has no place for."""
    if missing := sorted(needed - found.keys()):
        raise ValueError(f"it lacks {_some(missing)}")
    if extra := sorted(found.keys() - needed - besides):
        raise ValueError(f"it has {_some(extra)}, which this {ours} has no place for")


def check_rows(embedding: Tensor, vocab_size: int) -> None:
    """Raise ValueError where an embedding (rows, hidden) has other rows than the configuration says."""
    if embedding.shape[0] != vocab_size:
        raise ValueError(f"its embedding has {embedding.shape[0]} rows, its configuration vocab_size={vocab_size}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a tensor is of floating point and has this shape."""
    if tensor.shape != shape or not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} is {kind} {tuple(tensor.shape)}, floating-point {shape} is needed")


def check_same(name: str, tensor: Tensor, embedding: Tensor, *, ours: str) -> None:
    """Raise ValueError unless an output layer is the embedding (vocab_size, hidden) that the model shares with it."""
    if not torch.equal(tensor.to(embedding.dtype), embedding):
        raise ValueError(f"its output layer {name} was trained apart from the embedding, and this {ours} shares them")


def with_padding(words: Tensor, rows: int) -> Tensor:
    """Return a vocabulary (vocab_size, hidden) with zeros after it, (rows, hidden)."""
    return torch.cat([words, words.new_zeros(rows - words.shape[0], words.shape[1])])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
