"""A mark of a tensor: a few numbers from which the distance between two tensors can be told without keeping either.

Whole activations of every layer, rank and micro-batch would not fit into memory. A mark is a random projection with
signs that follow from the number of elements alone, so that two ranks make the same mark of the same tensor, and the
mark of a sum is the sum of the marks. Its norm is that of the tensor, within a tenth (Charikar et al. 2002, "Finding
frequent items in data streams"); tensors of up to `WIDTH` elements are kept as they are.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from paralab.axes.initialise import local, local_slices

WIDTH = 256

Place = tuple[tuple[int, int], ...]  # (start, end) in each dim of a whole tensor; () for all of it
Mark = np.ndarray  # (WIDTH,) fp64


@dataclass(frozen=True)
class Marked:
    """One rank's piece of a tensor. shape: of the whole, as the rank knows it; where: its piece of that."""

    shape: tuple[int, ...]
    where: Place
    mark: Mark

    @property
    def numel(self) -> int:
        return prod(end - start for start, end in self.where) if self.where else prod(self.shape)


def marked(tensor: Tensor, scale: float = 1.0) -> Marked | None:
    """Mark this rank's piece of a tensor of any shape, times `scale`; None where it has only a term of a sum."""
    if isinstance(tensor, DTensor) and any(placement.is_partial() for placement in tensor.placements):
        return None
    where = tuple((part.start, part.stop) for part in local_slices(tensor))
    return Marked(tuple(tensor.shape), where, mark(local(tensor)) * scale)


@torch.no_grad()
def mark(tensor: Tensor) -> Mark:
    """Return the mark (WIDTH,) of a tensor of any shape and dtype."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().flatten().double()
    if flat.numel() > WIDTH:
        flat = flat * _signs(flat.numel(), flat.device)
    rows = torch.nn.functional.pad(flat, (0, -flat.numel() % WIDTH)).view(-1, WIDTH)
    return rows.sum(0).cpu().numpy()


@lru_cache(maxsize=16)
def _signs(numel: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(numel)
    return (torch.randint(0, 2, (numel,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)


def cut(whole: Tensor, where: Place) -> Tensor:
    """Return the piece of a tensor of any shape that lies there."""
    return whole[tuple(slice(start, end) for start, end in where)] if where else whole


def length(mark: Mark, numel: int) -> float:
    """Return the root mean square of the elements of which a mark was made."""
    return float(np.linalg.norm(mark)) / max(numel, 1) ** 0.5


def gap(got: Mark, want: Mark, numel: int) -> float:
    """Return the root mean square of the difference of two tensors; infinity where one alone is not finite."""
    apart = length(got - want, numel)
    if apart == apart:
        return apart
    return 0.0 if np.array_equal(np.isfinite(got), np.isfinite(want)) else float("inf")
