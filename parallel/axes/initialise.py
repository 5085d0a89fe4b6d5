"""Initialise parameters so that their values do not depend on the layout.

Each parameter is drawn in full from a generator seeded by (seed, its full name), and a rank keeps its piece.
So every layout starts from the same weights, and a rank makes only the parameters it holds.
"""

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from paralab.models.spec import C, ModelSpec


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return the CPU generator that draws one parameter."""
    return torch.Generator().manual_seed(derived_seed(seed, name))


def seed_generators(seed: int, *, stage: int, data_rank: int) -> None:
    """Seed what code draws from that brings no generator: those of torch on all devices, of NumPy and of Python.

    Ranks that hold pieces of the same tensors for the same samples (tensor parallelism) draw the same numbers.
    """
    derived = derived_seed(seed, f"generators of stage {stage}, data rank {data_rank}")
    torch.manual_seed(derived)
    np.random.seed(derived % 2**32)
    random.seed(derived)


def derived_seed(seed: int, name: str) -> int:
    """Return a seed of 56 bits for one use of the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


def local_slice(full: Tensor, like: Tensor) -> Tensor:
    """Return the piece of a full tensor that this rank holds of `like`: its local shape, or all for a plain tensor."""
    return full[local_slices(like)]


def local_slices(like: Tensor) -> tuple[slice, ...]:
    """Return where in the full tensor the piece lies that this rank holds.

    Returns: a slice for each dim of a DTensor, whatever its shape; () for a plain tensor, which takes all of it.
    """
    if not isinstance(like, DTensor):
        return ()
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's piece of a tensor, of its local shape, sharing its storage."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def first_value(name: str, *, like: Tensor, spec: ModelSpec[C], config: C, seed: int) -> Tensor:
    """Return what a parameter or buffer begins with: the full tensor on the CPU, of the shape and dtype of `like`."""
    origin = spec.tied.get(name, name)
    full = torch.empty(like.shape, dtype=like.dtype)
    spec.init(config, origin, full, generator_for(seed, origin))
    return full


@torch.no_grad()
def initialise(part: nn.Module, *, spec: ModelSpec[C], config: C, seed: int) -> None:
    """Initialise every parameter and persistent buffer of a part of the model."""
    for name, tensor in part.state_dict(keep_vars=True).items():
        full = first_value(name, like=tensor, spec=spec, config=config, seed=seed)
        local(tensor).copy_(local_slice(full, tensor))


def tie(part: nn.Module, tied: Mapping[str, str]) -> None:
    """Give tied parameters one storage again, where a part holds both names."""
    names = dict(part.named_parameters(remove_duplicate=False))
    for name, origin in tied.items():
        if name in names and origin in names:
            module, _, attribute = name.rpartition(".")
            setattr(part.get_submodule(module), attribute, names[origin])
