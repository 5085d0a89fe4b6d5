"""Initialise parameters so that their values do not depend on the layout.

Each parameter is drawn in full from a generator seeded by (seed, its full name), and a rank keeps its piece.
So every layout starts from the same weights, and a rank makes only the parameters it holds. A model that does not say
how they are drawn is built whole by every rank for a moment, on the CPU and from the same seed.
"""

import hashlib
import random
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from paralab.models.configs import C
from paralab.models.found import plain_tensors
from paralab.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


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
    if not is_divided(like):
        return ()
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    return tuple(slice(start, start + length) for start, length in zip(offset, shape, strict=True))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's piece of a tensor, of its local shape, sharing its storage."""
    return tensor._local_tensor if is_divided(tensor) else tensor


def is_divided(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether this is a DTensor, without the second that it takes to import them where there are none."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


class FirstValues(Generic[C]):
    """What every tensor of a model begins with, by its full name: a full tensor on the CPU.

    Drawn by the `init` of the model; of one without it, the values of its own `__init__`, for which it is built whole
    when the first value is asked for, and kept as long as this object is.
    """

    def __init__(self, spec: ModelSpec[C], config: C, seed: int) -> None:
        self.spec, self.config, self.seed = spec, config, seed
        self.tied = spec.tied_in(config)

    @cached_property
    def _built(self) -> tuple[nn.Module, dict[str, Tensor]]:
        model = self.spec.built(self.config, seed=self.seed)
        return model, {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}

    @torch.no_grad()
    def __call__(self, name: str, like: Tensor) -> Tensor:
        """Return what a parameter or buffer begins with, of the shape and dtype of `like`."""
        origin = self.tied.get(name, name)
        if self.spec.init is None:
            return self._built[1][origin].detach().to(like.dtype)
        full = torch.empty(like.shape, dtype=like.dtype)
        self.spec.init(self.config, origin, full, generator_for(self.seed, origin))
        return full

    @torch.no_grad()
    def fill_unsaved(self, part: nn.Module) -> None:
        """Give a part of a model without `init` what is in no state dict: buffers that are not persistent, and tensors
        that modules hold as plain attributes. They go where the part is, and are whole on every rank.
        """
        if self.spec.init is not None:
            return
        saved = part.state_dict(keep_vars=True)
        for name, buffer in part.named_buffers():
            if name not in saved:
                buffer.copy_(self(name, buffer))
        for name, module in part.named_modules():
            for attribute, tensor in list(plain_tensors(module)):
                if tensor.is_meta:
                    value = getattr(self._built[0].get_submodule(name), attribute)
                    setattr(module, attribute, value.detach().to(_device_of(part)))


def _device_of(part: nn.Module) -> torch.device:
    return next((local(tensor).device for tensor in part.state_dict().values()), torch.device("cpu"))


@torch.no_grad()
def initialise(part: nn.Module, *, spec: ModelSpec[C], config: C, seed: int) -> None:
    """Initialise every parameter and persistent buffer of a part of the model, and what `FirstValues` has beside."""
    values = FirstValues(spec, config, seed)
    for name, tensor in part.state_dict(keep_vars=True).items():
        local(tensor).copy_(local_slice(values(name, tensor), tensor))
    values.fill_unsaved(part)


def tie(part: nn.Module, tied: Mapping[str, str]) -> None:
    """Give tied parameters one storage again, where a part holds both names."""
    names = dict(part.named_parameters(remove_duplicate=False))
    for name, origin in tied.items():
        if name in names and origin in names:
            module, _, attribute = name.rpartition(".")
            setattr(part.get_submodule(module), attribute, names[origin])
