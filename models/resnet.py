"""ResNet (He et al. 2016): the CIFAR form (section 4.2) and the ImageNet form (table 1), config, module, SPEC.

Shortcuts that change shape are 1x1 convolutions (option B), and the bottleneck strides in its 3x3 convolution,
as torchvision does. No batch norm starts at zero: a branch scaled by zero would hide from parity checks.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models import Norm, Residual
from paralab.models.norms import BatchNorm2d, GroupNorm, SyncBatchNorm2d
from paralab.models.spec import Flops, ModelSpec, Statistics, Style, at_least_fp32


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of one model: `depths` blocks at each of `widths`, halving the image between them.

    norm: "batch" (statistics of one rank's micro-batch), "syncbatch" (of all data ranks'), "group" or "none".
    residual: "on", or "off" for blocks without shortcuts (the plain networks of He et al. 2016, section 4.1).
    imagenet_stem: 7x7 convolution with stride 2 and max pooling, instead of a 3x3 convolution.
    channels_last: run convolutions in that memory format; results are the same up to rounding.

    Raises: ValueError for depths without widths or the reverse, an unknown norm or residual, and groups that do not
        divide.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    imagenet_stem: bool = False
    image_size: int = 28
    channels: int = 1
    n_classes: int = 10
    norm: Norm = "syncbatch"
    groups: int = 8  # of norm "group"
    residual: Residual = "on"
    channels_last: bool = False
    task: str = "classify"

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths={self.depths} and widths={self.widths} differ in length")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm={self.norm!r} is unknown: use {', '.join(get_args(Norm))}")
        if self.residual not in get_args(Residual):
            raise ValueError(f"residual={self.residual!r} is unknown: use {', '.join(get_args(Residual))}")
        if self.norm == "group" and any(width % self.groups for width in self.widths):
            raise ValueError(f"groups={self.groups} does not divide widths={self.widths}")


class BlockShape(NamedTuple):
    """Channels and stride of one block; `expansion` is 4 in a bottleneck and 1 elsewhere."""

    channels_in: int
    width: int
    expansion: int
    stride: int

    @property
    def channels_out(self) -> int:
        """Channels that the block returns."""
        return self.width * self.expansion

    @property
    def projects(self) -> bool:
        """Tell whether the shortcut needs a convolution to reach the shape of the output."""
        return self.stride != 1 or self.channels_in != self.channels_out


def block_shapes(config: ResNetConfig) -> list[BlockShape]:
    """Return the shape of every block, from first to last."""
    expansion = 4 if config.bottleneck else 1
    channels = config.widths[0]
    shapes = []
    for i, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
        for j in range(depth):
            shapes.append(BlockShape(channels, width, expansion, stride=2 if i > 0 and j == 0 else 1))
            channels = shapes[-1].channels_out
    return shapes


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size of the image, but for its stride."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)


def norm(config: ResNetConfig, channels: int) -> nn.Module:
    """Return the norm that the config names, over so many channels; "none" leaves them as they are."""
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "group":
        return GroupNorm(config.groups, channels)
    return {"batch": BatchNorm2d, "syncbatch": SyncBatchNorm2d}[config.norm](channels)


def shortcut(config: ResNetConfig, shape: BlockShape) -> nn.Module | None:
    """Return what the input of a block goes through before it is added to its output; None where it is not added."""
    if config.residual == "off":
        return None
    return Shortcut(config, shape) if shape.projects else nn.Identity()


class Stem(nn.Module):
    """The first convolution, its norm and, for ImageNet, max pooling."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        kernel, stride = (7, 2) if config.imagenet_stem else (3, 1)
        self.conv = conv(config.channels, config.widths[0], kernel, stride)
        self.norm = norm(config, config.widths[0])
        self.pools = config.imagenet_stem
        self.channels_last = config.channels_last

    def forward(self, images: Tensor) -> Tensor:
        """Take (batch, channels, size, size); return (batch, widths[0], size, size), size / 4 for ImageNet."""
        x = self.conv(images)
        if self.channels_last:  # the convolution did not see it: with one channel both formats are the same
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(x))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pools else x


class Shortcut(nn.Module):
    """A 1x1 convolution and its norm, where the shortcut of a block has to change shape."""

    def __init__(self, config: ResNetConfig, shape: BlockShape) -> None:
        super().__init__()
        self.conv = conv(shape.channels_in, shape.channels_out, 1, shape.stride)
        self.norm = norm(config, shape.channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Take (batch, channels_in, size, size); return (batch, channels_out, size', size'), divided by the stride."""
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5, left)."""

    def __init__(self, config: ResNetConfig, shape: BlockShape) -> None:
        super().__init__()
        self.conv1 = conv(shape.channels_in, shape.width, 3, shape.stride)
        self.norm1 = norm(config, shape.width)
        self.conv2 = conv(shape.width, shape.width, 3)
        self.norm2 = norm(config, shape.width)
        self.shortcut = shortcut(config, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Take (batch, channels_in, size, size); return (batch, channels_out, size', size'), divided by the stride."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, the first narrowing, and a shortcut (He et al. 2016, figure 5, right)."""

    def __init__(self, config: ResNetConfig, shape: BlockShape) -> None:
        super().__init__()
        self.conv1 = conv(shape.channels_in, shape.width, 1)
        self.norm1 = norm(config, shape.width)
        self.conv2 = conv(shape.width, shape.width, 3, shape.stride)
        self.norm2 = norm(config, shape.width)
        self.conv3 = conv(shape.width, shape.channels_out, 1)
        self.norm3 = norm(config, shape.channels_out)
        self.shortcut = shortcut(config, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Take (batch, channels_in, size, size); return (batch, channels_out, size', size'), divided by the stride."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return F.relu(y if self.shortcut is None else y + self.shortcut(x))


class Head(nn.Module):
    """Average over the image, linear layer, cross entropy."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(block_shapes(config)[-1].channels_out, config.n_classes)

    def forward(self, x: Tensor, targets: Tensor | None) -> Tensor:
        """Take x (batch, channels, size, size); return logits (batch, n_classes).

        With targets (batch,) int64 return the mean cross entropy, fp32, shape ().
        """
        logits = self.linear(x.mean((2, 3)))  # (batch, n_classes)
        return logits if targets is None else F.cross_entropy(at_least_fp32(logits), targets)


class ResNet(nn.Module):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        block = Bottleneck if config.bottleneck else BasicBlock
        self.channels_last = config.channels_last
        self.stem = Stem(config)
        self.blocks = nn.ModuleDict({str(i): block(config, shape) for i, shape in enumerate(block_shapes(config))})
        self.head: nn.Module = Head(config)

    def forward(self, x: Tensor, *, targets: Tensor | None = None) -> Tensor:
        """Take images (batch, channels, size, size), or the feature map of the stage before.

        Returns: the mean loss () in fp32 with targets (batch,) int64, logits (batch, n_classes) without, or the feature
        map for the stage that follows.
        """
        if self.channels_last:
            x = _ChannelsLast.apply(x)
        if self.stem is not None:
            x = self.stem(x)
        for block in self.blocks.values():
            x = block(x)
        # A stage receives into buffers of the default format, so that is what is sent.
        return x.contiguous() if self.head is None else self.head(x, targets)

    def features(self, images: Tensor) -> Tensor:
        """Return the mean over the last feature map of a whole model: (batch, channels_out).

        images: (batch, channels, size, size).
        """
        x = self.stem(_ChannelsLast.apply(images) if self.channels_last else images)
        for block in self.blocks.values():
            x = block(x)
        return x.mean((2, 3))


class _ChannelsLast(torch.autograd.Function):
    """Change to channels last, and the gradient back: it too is sent to a buffer of the default format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous()


def init(config: ResNetConfig, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Initialise a full tensor of any shape.

    Convolutions: He et al. 2015 (fan out). Linear layer: N(0, 0.01). Norms: scale 1, shift 0.
    """
    kind = name.rpartition(".")[2]
    if tensor.dim() == 4:
        nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu", generator=generator)
    elif tensor.dim() == 2:
        tensor.normal_(0.0, 0.01, generator=generator)
    elif kind in ("weight", "running_var"):
        tensor.fill_(1)
    else:  # bias, running_mean, num_batches_tracked
        tensor.zero_()


def flops(config: ResNetConfig) -> Flops:
    """Count convolutions and the linear layer, 2 a multiply-add, backward twice the forward pass.

    Norms, activations and pooling are left out, and the images' own gradient is counted, as is usual.
    """
    size = config.image_size
    kernel = 3
    if config.imagenet_stem:
        size, kernel = _halve(size), 7
    macs = size**2 * kernel**2 * config.channels * config.widths[0]
    if config.imagenet_stem:
        size = _halve(size)
    for shape in block_shapes(config):
        out = _halve(size) if shape.stride == 2 else size
        if config.bottleneck:
            macs += size**2 * shape.channels_in * shape.width
            macs += out**2 * shape.width * (9 * shape.width + shape.channels_out)
        else:
            macs += out**2 * 9 * (shape.channels_in + shape.width) * shape.width
        if shape.projects and config.residual == "on":
            macs += out**2 * shape.channels_in * shape.channels_out
        size = out
    macs += block_shapes(config)[-1].channels_out * config.n_classes
    return Flops(per_sample=3 * 2 * macs, formula="3x2xMAC conv+linear")


def _halve(size: int) -> int:
    return -(-size // 2)


def example(config: ResNetConfig, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: ((images (batch, channels, size, size),), labels (batch,) int64)."""
    images = torch.zeros(batch_size, config.channels, config.image_size, config.image_size)
    return (images,), torch.zeros(batch_size, dtype=torch.int64)


def tensor_plan(config: ResNetConfig) -> dict[str, Style]:
    """Split the channels inside a block: the convolution before them, their norm, the convolution after them."""
    i = 2 if config.bottleneck else 1
    norms: dict[str, Style] = {} if config.norm == "none" else {f"blocks.*.norm{i}": "channels"}
    return {f"blocks.*.conv{i}": "column", **norms, f"blocks.*.conv{i + 1}": "row"}


def tensor_divides(config: ResNetConfig) -> dict[str, int]:
    """Return what tp has to divide: every width and, with group norm, the number of groups."""
    divides = {"width": math.gcd(*config.widths)}
    return divides | {"groups": config.groups} if config.norm == "group" else divides


def batch_statistics(config: ResNetConfig) -> Statistics:
    """Return over which samples the norms take statistics: none, those of one rank, or all ("global")."""
    kinds: dict[str, Literal["rank", "global"]] = {"batch": "rank", "syncbatch": "global"}
    return kinds.get(config.norm, "none")


ConfigT = TypeVar("ConfigT", bound=ResNetConfig)


def with_blocks(config: ConfigT, n: int) -> ConfigT:
    """Return the same model with n blocks, or with one of each width where n is less."""
    even, more = divmod(max(n, len(config.widths)), len(config.widths))
    return replace(config, depths=tuple(even + (i < more) for i in range(len(config.widths))))


def _imagenet(depths: tuple[int, ...], *, bottleneck: bool = False) -> ResNetConfig:
    return ResNetConfig(
        depths=depths,
        widths=(64, 128, 256, 512),
        bottleneck=bottleneck,
        imagenet_stem=True,
        image_size=224,
        channels=3,
        n_classes=1000,
        groups=32,
    )


SIZES = {
    "tiny": ResNetConfig(depths=(4, 4), widths=(8, 16), groups=4),
    "8": ResNetConfig(depths=(1, 1, 1), widths=(16, 32, 64)),
    "20": ResNetConfig(depths=(3, 3, 3), widths=(16, 32, 64)),
    "56": ResNetConfig(depths=(9, 9, 9), widths=(16, 32, 64)),
    "18": _imagenet((2, 2, 2, 2)),
    "34": _imagenet((3, 4, 6, 3)),
    "50": _imagenet((3, 4, 6, 3), bottleneck=True),
}

SPEC = ModelSpec(
    name="resnet",
    sizes=SIZES,
    default_size="20",
    tiny_size="tiny",
    build=ResNet,
    init=init,
    example=example,
    n_blocks=lambda config: sum(config.depths),
    with_blocks=with_blocks,
    first=("stem",),
    last=("head",),
    flops=flops,
    data=lambda config: "mnist",
    smooth=False,
    tensor_plan=tensor_plan,
    tensor_divides=tensor_divides,
    batch_statistics=batch_statistics,
)
