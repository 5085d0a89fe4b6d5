"""From clean samples to the inputs and targets of a task: classification, denoising."""

import math

import numpy as np
import torch

from paralab.data.dataset import Batch, Samples
from paralab.data.images import ArrayImages
from paralab.data.noise import to_normals, uniforms


class OfSamples:
    """Base of tasks: what they say of their data is what the samples say."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.name, self.sha256, self.found = samples.name, samples.sha256, samples.found
        self.n_samples = samples.n_samples


class Classify(OfSamples):
    """Inputs are images (rows, channels, height, width), targets their labels (rows,) int64."""

    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        images, labels = self.samples.load(indices)
        return Batch((images,), labels)


class ClassifyStored(Classify):
    """The same of images held in memory as bytes, which may be copied as such."""

    samples: ArrayImages

    def stored(self, indices: np.ndarray) -> Batch:
        images, labels = self.samples.stored(indices)
        return Batch((images,), labels)

    def cast(self, batch: Batch) -> Batch:
        return Batch((self.samples.cast(batch.inputs[0]),), batch.targets)


class Denoise(OfSamples):
    """Predict the noise of a variance-exploding diffusion (Song et al. 2021, section 3.4).

    The noise level sigma of a sample is log-uniform in [sigma_min, sigma_max]; the model is shown
    x + sigma * noise. Inputs are the noisy samples (rows, ...), sigma (rows,), and labels (rows,) if the samples
    have them; targets are the noise (rows, ...). All float32, labels int64.
    """

    def __init__(self, samples: Samples, *, sigma_min: float, sigma_max: float) -> None:
        super().__init__(samples)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        clean, *labels = self.samples.load(indices)
        size = math.prod(clean.shape[1:])
        # two uniforms for the level (the second stays unused), then pairs for the noise
        draws = uniforms(positions, seed=seed, count=2 + size + size % 2)
        level = self.sigma_min * (self.sigma_max / self.sigma_min) ** draws[:, 0]
        sigma = torch.from_numpy(level.astype(np.float32))
        normals = to_normals(draws[:, 2:])[:, :size]
        noise = torch.from_numpy(normals.astype(np.float32)).reshape(clean.shape)
        noisy = clean + sigma.reshape(-1, *[1] * (clean.dim() - 1)) * noise
        return Batch((noisy, sigma, *labels), noise)
