"""Two random views of each image, for models that learn without labels.

What is drawn for a sample depends on the seed and on its running number in the training alone, and so on the image and
the epoch: every layout, loader process and resumed run sees the same views, whichever samples are beside them.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.data.dataset import Batch
from paralab.data.noise import uniforms
from paralab.data.tasks import OfSamples

# Random crops are those of He et al. 2016 in torchvision's form, of a larger share: digits have no background to spare.
LEAST_AREA, LARGEST_ASPECT = 0.5, 4 / 3
MOST_DEGREES = 20.0
BRIGHTNESS, CONTRAST = 0.2, 0.4  # most that is added to pixels in [-1, 1], and most that they are scaled by
BLACK = -1.0  # of images in [-1, 1]
DRAWS = 8  # of one view


class Views(OfSamples):
    """Inputs are two views of each image, both (rows, channels, size, size); targets are labels (rows,) int64."""

    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        images, labels = self.samples.load(indices)
        first, second = np.split(uniforms(positions, seed=seed, count=2 * DRAWS), 2, axis=1)
        return Batch((view(images, first), view(images, second)), labels)


def view(images: Tensor, draws: np.ndarray) -> Tensor:
    """Return a view of each image: cropped, stretched and turned, then softened, brightened and scaled in contrast.

    images: (rows, channels, size, size) float32 in [-1, 1]. draws: (rows, 8) in (0, 1). Returns: the shape of images,
    float32, in [-1, 1].
    """
    seen = F.grid_sample(images - BLACK, _places(draws, images.shape[-1]), align_corners=False) + BLACK
    soft, bright, contrast = (torch.from_numpy(draw.astype(np.float32)).view(-1, 1, 1, 1) for draw in draws.T[5:])
    seen = seen + soft * (F.avg_pool2d(seen - BLACK, 3, stride=1, padding=1) + BLACK - seen)
    return (seen * (1 + CONTRAST * (2 * contrast - 1)) + BRIGHTNESS * (2 * bright - 1)).clamp(-1, 1)


def _places(draws: np.ndarray, size: int) -> Tensor:
    """Return where in the image each pixel of a view is: (rows, size, size, 2) as grid_sample takes it."""
    area = LEAST_AREA + (1 - LEAST_AREA) * draws[:, 0]
    aspect = LARGEST_ASPECT ** (2 * draws[:, 1] - 1)
    width, height = np.minimum(np.sqrt(area * aspect), 1), np.minimum(np.sqrt(area / aspect), 1)
    left, top = (1 - width) * (2 * draws[:, 2] - 1), (1 - height) * (2 * draws[:, 3] - 1)
    angle = math.radians(MOST_DEGREES) * (2 * draws[:, 4] - 1)
    across = (2 * np.arange(size) + 1) / size - 1  # the centres of pixels, from -1 to 1
    each = (slice(None), None, None)
    x, y = width[each] * across[None, None, :], height[each] * across[None, :, None]
    cos, sin = np.cos(angle)[each], np.sin(angle)[each]
    turned = np.stack([cos * x - sin * y + left[each], sin * x + cos * y + top[each]], axis=-1)
    return torch.from_numpy(turned.astype(np.float32))
