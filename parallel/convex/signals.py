"""A signal to denoise, and noise, both drawn from a seed."""

import torch
from torch import Tensor

JUMPS = 12


def piecewise_constant(length: int, *, seed: int) -> Tensor:
    """Return a signal (1, length) fp64 of constant pieces, with values in [-1, 1] and 12 jumps at random places."""
    generator = torch.Generator().manual_seed(seed)
    jumps = torch.randperm(length - 1, generator=generator)[:JUMPS].sort().values + 1
    values = 2 * torch.rand(JUMPS + 1, dtype=torch.float64, generator=generator) - 1
    return values[torch.bucketize(torch.arange(length), jumps, right=True)][None]


def with_noise(clean: Tensor, *, std: float, seed: int) -> Tensor:
    """Return clean, of any shape, plus Gaussian noise of that standard deviation."""
    generator = torch.Generator().manual_seed(seed + 1)
    return clean + std * torch.randn(clean.shape, dtype=clean.dtype, generator=generator)
