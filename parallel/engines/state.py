"""The state of an engine as named chunks: each local tensor with its place in the full tensor.

The names and the full shapes are those of one process, so a checkpoint knows nothing of the layout that wrote it:

    model.<parameter or buffer>          a tied parameter under the name of the one it is tied to
    optimizer.<parameter>.<slot>         exp_avg, exp_avg_sq, momentum_buffer: (shape of the parameter); step: ()
    random.<device>.<rank>               state of torch's default generators, uint8

What an optimizer keeps in 8 bits is written as the fp32 numbers that it stands for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from paralab.axes import eight_bits
from paralab.axes.initialise import local
from paralab.axes.optimizer import Piece
from paralab.errors import ConfigError

if TYPE_CHECKING:
    from paralab.engines.engine import Engine
    from paralab.engines.native import NativeEngine


@dataclass(frozen=True)
class Chunk:
    """A local tensor, and the box it fills of the full tensor: it starts at `offsets` of `shape`."""

    data: Tensor
    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def box(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.offsets), self.data.shape)


# A rank may hold a name more than once: tied parameters at both ends of a pipeline that starts where it ends.
Chunks = dict[str, list[Chunk]]
Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # of the full tensors in a checkpoint, by name


def whole(tensor: Tensor) -> Chunk:
    """Return a tensor of any shape as the one chunk of itself, sharing its storage."""
    return Chunk(tensor, (0,) * tensor.ndim, tuple(tensor.shape))


def chunk_of(tensor: Tensor) -> Chunk:
    """Return this rank's chunk of a tensor, sharing its storage.

    The local shape, its offsets and the whole shape are those that a DTensor gives; a plain tensor is whole.
    """
    if not isinstance(tensor, DTensor):
        return whole(tensor)
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Chunk(local(tensor), tuple(offsets), tuple(tensor.shape))


def model_chunks(engine: "Engine", *, prefix: str = "model.") -> Chunks:
    """Return the parameters and persistent buffers of this rank, to be read or written in place."""
    tied = engine.context.tied
    tensors = ((name, tensor) for part in engine.parts for name, tensor in part.state_dict().items())
    return _gather((prefix + tied.get(name, name), chunk_of(tensor)) for name, tensor in tensors)


def optimizer_chunks(engine: "NativeEngine") -> Chunks:
    """Return what the optimizer of this rank remembers."""
    return _gather(
        (f"optimizer.{name}.{slot}", _chunk_of_state(_numbers(value), piece))
        for name, piece in _named_pieces(engine)
        for slot, value in engine.optimizer.state.get(piece.updated, {}).items()
        if isinstance(value, Tensor)
    )


def _numbers(state: Tensor) -> Tensor:
    """Return a state of any shape as the numbers that it stands for, where it is kept in 8 bits."""
    return eight_bits.unpack(state) if eight_bits.is_in_eight_bits(state) else state


def new_optimizer_chunks(engine: "NativeEngine", saved: Shapes) -> Chunks:
    """Make the optimizer forget everything and give it empty tensors for what a checkpoint has."""
    slots: dict[str, list[str]] = {}
    for key in saved:
        kind, _, rest = key.partition(".")
        name, _, slot = rest.rpartition(".")
        if kind == "optimizer":
            slots.setdefault(name, []).append(slot)
    engine.optimizer.state.clear()
    for name, piece in _named_pieces(engine):
        if name in slots:
            engine.optimizer.state[piece.updated] = {
                slot: _empty_state(piece, *saved[f"optimizer.{name}.{slot}"]) for slot in slots[name]
            }
    return optimizer_chunks(engine)


def _named_pieces(engine: "NativeEngine") -> Iterator[tuple[str, Piece]]:
    """Yield what the optimizer of this rank updates, with the name of its parameter."""
    tied = engine.context.tied
    names = {id(p): tied.get(name, name) for name, p in engine.parameters()}
    for piece in engine.pieces:
        yield names[id(piece.parameter)], piece


def _chunk_of_state(value: Tensor, piece: Piece) -> Chunk:
    if value.ndim == 0:  # a count of steps, the same for the whole parameter
        return whole(value)
    if isinstance(value, DTensor):  # of an optimizer that was given the sharded parameter itself
        return chunk_of(value)
    around = chunk_of(piece.parameter)
    first_row = around.offsets[0] + (piece.rows.start or 0)
    return Chunk(value, (first_row, *around.offsets[1:]), around.shape)


def _empty_state(piece: Piece, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if shape == tuple(piece.parameter.shape):
        return torch.zeros_like(piece.updated)
    if shape and isinstance(piece.updated, DTensor):
        raise ConfigError(
            f"the optimizer keeps a state of shape {shape} for a parameter of shape {tuple(piece.parameter.shape)}, "
            "which is not known to be divided over the ranks: load it under a layout that shards nothing, such as ddp"
        )
    return torch.zeros(shape, dtype=dtype, device=piece.updated.device)


def _gather(named: Iterator[tuple[str, Chunk]]) -> Chunks:
    chunks: Chunks = {}
    for name, chunk in named:
        if chunk.data.numel():  # a rank may own no rows of a short tensor
            chunks.setdefault(name, []).append(chunk)
    return chunks
