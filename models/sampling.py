"""Samplers and log probabilities of a diffusion model (Song et al. 2021): DDIM, reverse SDE, probability-flow ODE.

The noise level sigma is the time. With x = clean + sigma * noise, a network that predicts the noise gives the score
as -noise / sigma, and the probability-flow ODE is dx / dsigma = noise (Karras et al. 2022, equation 1).
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

# predict(x (batch, ...), sigma (batch,)) -> the noise in x, of its shape
Predict = Callable[[Tensor, Tensor], Tensor]


class Sampler(Protocol):
    """Takes samples from the first of the descending noise levels to the last.

    x: (batch, ...). levels: (levels,). Returns: x at every level, (levels, batch, ...).
    """

    def __call__(
        self, predict: Predict, x: Tensor, *, levels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return x (batch, ...) at every level, (levels, batch, ...)."""


def noise_levels(steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return noise levels (steps,) from sigma_max down to sigma_min, fp64 (Karras et al. 2022, equation 5)."""
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.linspace(high, low, steps, dtype=torch.float64) ** rho


def with_zero(levels: Tensor) -> Tensor:
    """Return levels (n,) followed by zero, where samples are clean: (n + 1,)."""
    return torch.cat([levels, levels.new_zeros(1)])


@torch.no_grad()
def ddim(predict: Predict, x: Tensor, *, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Follow the probability-flow ODE by Euler's steps, which is DDIM (Song et al. 2020). Nothing is drawn.

    x: (batch, ...). levels: (levels,). Returns: x at every level, (levels, batch, ...).
    """
    path = [x]
    for high, low in pairwise(levels.tolist()):
        x = x + (low - high) * predict(x, _full(x, high))
        path.append(x)
    return torch.stack(path)


@torch.no_grad()
def reverse_sde(predict: Predict, x: Tensor, *, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Follow the reverse SDE by ancestral steps (Song et al. 2021, appendix F, equation 47).

    x: (batch, ...). levels: (levels,). Returns: x at every level, (levels, batch, ...).
    """
    path = [x]
    for high, low in pairwise(levels.tolist()):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        removed = (high**2 - low**2) / high
        x = x - removed * predict(x, _full(x, high)) + low * math.sqrt(1 - (low / high) ** 2) * noise
        path.append(x)
    return torch.stack(path)


SAMPLERS: Mapping[str, Sampler] = {"ddim": ddim, "sde": reverse_sde}


def log_probability(predict: Predict, x: Tensor, *, levels: Tensor, data_std: float) -> Tensor:
    """Return the log density of points x (batch, dims) under the model, (batch,) in the dtype of x, in nats.

    The density is that of the data with noise of the lowest level. Points follow the probability-flow ODE up to the
    highest, by Heun's steps, and log p changes by the divergence of the flow (Song et al. 2021, section 4.3), which
    is exact here: one backward pass for each dimension. There the density is taken for a Gaussian of mean 0 and
    variance data_std^2 + sigma_max^2.
    """
    total = x.new_zeros(len(x))
    for low, high in pairwise(levels.flip(0).tolist()):
        slope, divergence = _flow(predict, x, low)
        next_slope, next_divergence = _flow(predict, x + (high - low) * slope, high)
        x = x + (high - low) * (slope + next_slope) / 2
        total = total + (high - low) * (divergence + next_divergence) / 2
    variance = data_std**2 + levels[0].item() ** 2
    return total - 0.5 * (x.square().sum(1) / variance + x.shape[1] * math.log(2 * math.pi * variance))


def _flow(predict: Predict, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Return dx / dsigma at x (batch, dims), and its divergence (batch,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        slope = predict(x, _full(x, sigma))
        columns = [torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
    return slope.detach(), torch.stack(columns).sum(0)


def _full(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
