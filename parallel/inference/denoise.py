"""Noise added to held-out samples and taken away again by a diffusion model, at several levels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paralab.inference.restore import Trained
from paralab.models.diffusion import DiTConfig
from paralab.models.sampling import Predict, ddim, noise_levels, with_zero


@dataclass(frozen=True)
class Denoised:
    """Samples (n, ...) of one noise level sigma, on the CPU.

    mean: what one evaluation of the model makes of the noisy ones, its estimate of the mean of all originals that they
    may be of. sampled: where the probability-flow ODE takes them, its estimate of one of these.
    """

    sigma: float
    noisy: Tensor
    mean: Tensor
    sampled: Tensor


def held_out(trained: Trained, n: int) -> tuple[Tensor, Tensor | None]:
    """Return the first n held-out samples (n, ...), fewer where there are fewer, and their labels (n,), of images.

    The samples are where the model is, in its dtype.
    """
    samples = trained.work.dataset("validation").samples  # type: ignore[attr-defined]
    found = samples.load(np.arange(min(n, samples.n_samples)))
    labels = found[1] if isinstance(trained.work.model_config, DiTConfig) else None
    return found[0].to(next(trained.model.parameters())), labels


def predictor(trained: Trained, labels: Tensor | None, *, on_call: Callable[[], None] = lambda: None) -> Predict:
    """Return what predicts the noise in samples, on the device of a model.

    labels: (n,) int64, of images. on_call: called at each evaluation of the model.
    """
    given = () if labels is None else (labels.to(trained.device),)

    def predict(x: Tensor, sigma: Tensor) -> Tensor:
        on_call()
        found: Tensor = trained.model(x, sigma, *given)
        return found

    return predict


@torch.no_grad()
def denoise(
    predict: Predict, clean: Tensor, *, sigmas: Iterable[float], sigma_min: float, steps: int, seed: int
) -> list[Denoised]:
    """Return what becomes of clean samples (n, ...) with the same noise (n, ...) times each sigma.

    steps: noise levels of the ODE, from sigma down to sigma_min.
    """
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    found = []
    for sigma in sigmas:
        noisy = clean + sigma * noise
        mean = noisy - sigma * predict(noisy, torch.full((len(noisy),), sigma).to(clean))
        levels = with_zero(noise_levels(steps, sigma_min=min(sigma_min, sigma), sigma_max=sigma))
        sampled = ddim(predict, noisy, levels=levels)[-1]
        found.append(Denoised(sigma, *(x.cpu() for x in (noisy, mean, sampled))))
    return found
