"""VICReg (Bardes, Ponce and LeCun 2022): config, module, SPEC. Two views of each image are made alike without labels.

A ResNet encoder and an expander, both seen by both views at once. The loss asks that the two embeddings of an image are
close (invariance), that every coordinate varies over the batch (variance) and that no two say the same (covariance).
The last two are statistics of the whole batch, whichever ranks hold it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.errors import ConfigError
from paralab.models import resnet
from paralab.models.gathering import Gathering
from paralab.models.resnet import ResNet, ResNetConfig, block_shapes, conv, norm
from paralab.models.spec import Flops, ModelSpec, Style, at_least_fp32

EPS = 1e-4  # beside the variance, and the standard deviation that is asked for (section 4.1 and algorithm 1)
TARGET_STD = 1.0


@dataclass(frozen=True)
class VICRegConfig(ResNetConfig):
    """Sizes of one model: those of the encoder, and of the three layers of the expander.

    invariance, variance, covariance: the coefficients of the loss (section 4.2). n_classes: of the data; not learned.

    Raises: ConfigError for norm "batch"; ValueError as of ResNetConfig.
    """

    expander: int = 8192
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    task: str = "views"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "batch":
            raise ConfigError(
                "--norm batch with vicreg: its loss is over the batch of all ranks, and no process alone has norms "
                "that see one rank's part of it: use --norm syncbatch, group or none"
            )
        if self.norm == "group" and self.expander % self.groups:
            raise ValueError(f"groups={self.groups} does not divide expander={self.expander}")


class Terms(nn.Module, Gathering):
    """The loss over the embeddings of all data ranks."""

    def __init__(self, config: VICRegConfig) -> None:
        super().__init__()
        self.coefficients = config.invariance, config.variance, config.covariance

    def forward(self, z: Tensor, targets: Tensor | None) -> Tensor:
        """Take embeddings z (2 samples, expander), the views of a sample side by side; return them as they are.

        With targets, which are not looked at, return the loss, fp32, shape ().
        """
        if targets is None:
            return z
        a, b = at_least_fp32(self.gathered(z)).flatten(0, 1).unflatten(0, (-1, 2)).unbind(1)
        found = invariance(a, b), variance(a) + variance(b), covariance(a) + covariance(b)
        return sum((weight * term for weight, term in zip(self.coefficients, found, strict=True)), a.new_zeros(()))


def invariance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean squared difference of two sets of embeddings (samples, width), shape () (algorithm 1).

    Equation 5 leaves out the mean over the width, but the default coefficients are for it.
    """
    return F.mse_loss(a, b)


def variance(z: Tensor) -> Tensor:
    """Return by how much coordinates of z (samples, width) miss a standard deviation of 1, () (equations 1, 2)."""
    return F.relu(TARGET_STD - (z.var(dim=0) + EPS).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """Return the sum of squares of the covariances of z (samples, width), over the width, shape () (equations 3, 4)."""
    z = z - z.mean(dim=0)
    matrix = z.T @ z / (len(z) - 1)  # (width, width)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]


class Expander(nn.Module):
    """Average over the image, then three linear layers, two of them with norm and ReLU (section 4.2); then the loss.

    The layers are 1x1 convolutions, so that they and their norms are those of the encoder.
    """

    def __init__(self, config: VICRegConfig) -> None:
        super().__init__()
        width = config.expander
        self.conv1 = conv(block_shapes(config)[-1].channels_out, width, 1)
        self.norm1 = norm(config, width)
        self.conv2 = conv(width, width, 1)
        self.norm2 = norm(config, width)
        self.conv3 = conv(width, width, 1)
        self.terms = Terms(config)

    def forward(self, x: Tensor, targets: Tensor | None) -> Tensor:
        """Take x (2 batch, channels, size, size); return embeddings (2 batch, expander), or the loss with targets."""
        y = x.mean((2, 3), keepdim=True)
        y = F.relu(self.norm1(self.conv1(y)))
        y = F.relu(self.norm2(self.conv2(y)))
        return self.terms(self.conv3(y).flatten(1), targets)


class VICReg(ResNet):
    """Encoder and expander. Its `features` are what is used once it is trained; the expander is for the loss."""

    def __init__(self, config: VICRegConfig) -> None:
        super().__init__(config)
        self.head = Expander(config)

    def forward(self, a: Tensor, b: Tensor, *, targets: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Take two views of the same images, both (batch, channels, size, size).

        Both go through the layers together, so that the norms see them as one batch, in the order of the samples: a
        rank has a slice of it.

        Returns: embeddings (2 batch, expander), those of an image side by side; the loss () in fp32 with targets
        (batch,).
        """
        return super().forward(torch.stack([a, b], dim=1).flatten(0, 1), targets=targets)


def flops(config: VICRegConfig) -> Flops:
    """Count convolutions of both views as of a ResNet, with the expander in the place of its linear layer."""
    channels, width = block_shapes(config)[-1].channels_out, config.expander
    encoder = resnet.flops(replace(config, n_classes=0)).per_sample
    return Flops(2 * (encoder + 3 * 2 * (channels + 2 * width) * width), "2 views x 3x2xMAC conv+linear")


def example(config: VICRegConfig, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: (view, view), labels (batch,) int64.

    Both views are (batch, channels, image_size, image_size).
    """
    (images,), labels = resnet.example(config, batch_size)
    return (images, images.clone()), labels


def tensor_plan(config: VICRegConfig) -> Mapping[str, Style]:
    """Split the channels inside a block of the encoder; the expander is whole on every rank."""
    return resnet.tensor_plan(config)


def cannot(config: VICRegConfig, axis: str) -> str:
    """Return why a pipeline cannot split it."""
    return "its loss is over the whole batch, which a pipeline would cut into micro-batches" if axis == "pp" else ""


SIZES = {
    "tiny": VICRegConfig(depths=(1, 1), widths=(8, 16), groups=4, expander=32),
    "8": VICRegConfig(depths=(1, 1, 1), widths=(16, 32, 64), expander=256),
    "20": VICRegConfig(depths=(3, 3, 3), widths=(16, 32, 64), expander=512),
    "50": VICRegConfig(**vars(resnet.SIZES["50"]) | {"task": "views"}),  # section 4.2 and 5
}

SPEC = ModelSpec(
    name="vicreg",
    sizes=SIZES,
    default_size="8",
    tiny_size="tiny",
    build=VICReg,
    init=resnet.init,
    example=example,
    n_blocks=lambda config: sum(config.depths),
    with_blocks=resnet.with_blocks,
    first=("stem",),
    last=("head",),
    flops=flops,
    data=lambda config: "mnist",
    smooth=False,
    whole_batch=True,
    tensor_plan=tensor_plan,
    tensor_divides=resnet.tensor_divides,
    batch_statistics=resnet.batch_statistics,
    cannot=cannot,
)
