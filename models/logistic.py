"""Multiclass logistic regression on the pixels of an image (Bishop 2006, section 4.3.4): config, module, SPEC.

The mean cross entropy is convex in weights and bias.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models.spec import Flops, ModelSpec, at_least_fp32


@dataclass(frozen=True)
class LogisticConfig:
    """Sizes of one model: images of image_size x image_size pixels, and the number of classes."""

    image_size: int = 28
    channels: int = 1
    n_classes: int = 10
    task: str = "classify"

    @property
    def n_features(self) -> int:
        """Numbers in an image."""
        return self.channels * self.image_size**2


class Logistic(nn.Module):
    """A linear layer on the pixels, and the mean cross entropy of its softmax."""

    def __init__(self, config: LogisticConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.n_features, config.n_classes)

    def forward(self, images: Tensor, *, targets: Tensor | None = None) -> Tensor:
        """Take images (batch, channels, size, size); return logits (batch, n_classes).

        With targets (batch,) int64 return the mean cross entropy, fp32, shape ().
        """
        logits = self.linear(images.flatten(1))  # (batch, n_classes)
        return logits if targets is None else F.cross_entropy(at_least_fp32(logits), targets)


def init(config: LogisticConfig, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Initialise a full tensor: weights (n_classes, n_features) N(0, 0.01), bias (n_classes,) 0."""
    if tensor.dim() == 2:
        tensor.normal_(0.0, 0.01, generator=generator)
    else:
        tensor.zero_()


def example(config: LogisticConfig, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: ((images (batch, channels, size, size),), labels (batch,) int64)."""
    images = torch.zeros(batch_size, config.channels, config.image_size, config.image_size)
    return (images,), torch.zeros(batch_size, dtype=torch.int64)


def flops(config: LogisticConfig) -> Flops:
    """Count the products of the linear layer, forward and for the gradient of the weights: images need none."""
    return Flops(per_sample=2 * 2 * config.n_features * config.n_classes, formula="2x2xMAC linear")


def cannot(config: LogisticConfig, axis: str) -> str:
    """Return why an axis other than that of data cannot split the model."""
    if axis == "dp":
        return ""
    return f"it is one layer with {config.n_classes} outputs, so only its samples are divided: use dpN, or dpN/zero3"


SPEC = ModelSpec(
    name="logistic",
    sizes={
        "28": LogisticConfig(),
        "14": LogisticConfig(image_size=14),
        "7": LogisticConfig(image_size=7),
    },  # pixels of height and width
    default_size="28",
    tiny_size="7",
    build=Logistic,
    init=init,
    example=example,
    flops=flops,
    data=lambda config: "mnist",
    cannot=cannot,
)
