"""Variance-exploding diffusion (Song et al. 2021, section 3.4) on 2D points and on images: configs, module, SPEC.

A sample is x + sigma * noise and the network predicts the noise. Points go through residual MLP blocks, images
through DiT blocks (Peebles & Xie 2023, section 3.2). In both, the noise level steers every block by a shift, a
scale and a gate. DiT starts the gates at exactly zero; here they start small instead, since a branch behind a
zero gate would hide from parity checks of the first steps.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab.models.sequence import Attend, Sequence, SequenceShape
from paralab.models.sizes import dims, numbers, whole
from paralab.models.spec import Flops, ModelSpec, Style, at_least_fp32

N_FEATURES = 64  # of the noise level
MLP_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class PointsConfig:
    """A denoiser of points (2,), scaled to mean 0 and standard deviation `sigma_data`."""

    hidden: int
    n_blocks: int
    dims: int = 2
    sigma_min: float = 0.01
    sigma_max: float = 20.0
    sigma_data: float = 1.0
    task: str = "denoise_points"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return (self.dims,)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """A denoiser of images (channels, image_size, image_size), scaled to [-1, 1].

    The label `n_classes` stands for "none given" (classifier-free guidance, Ho & Salimans 2022, trains with it
    now and then); so does leaving the labels out. sigma_data is that of Karras et al. 2022, table 1.

    Raises: ValueError when the heads do not divide the width, or the patches the image.
    """

    hidden: int
    n_blocks: int
    n_heads: int
    patch_size: int
    image_size: int = 32
    channels: int = 4
    n_classes: int = 1000
    sigma_min: float = 0.01
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    task: str = "denoise_images"

    def __post_init__(self) -> None:
        if self.hidden % self.n_heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of n_heads={self.n_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return (self.channels, self.image_size, self.image_size)

    @property
    def n_patches(self) -> int:
        """Patches of one image: the length of its sequence."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_values(self) -> int:
        """Values of one patch, over all channels."""
        return self.patch_size**2 * self.channels


Config = PointsConfig | DiTConfig


def normalize(x: Tensor) -> Tensor:
    """Normalize each vector of x (..., hidden). There are no parameters: the noise level gives scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def patchify(images: Tensor, size: int) -> Tensor:
    """Cut images (batch, channels, h size, w size) into h w patches: (batch, h w, channels size size)."""
    x = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (batch, channels, h, size, w, size)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """Undo `patchify` for square images: (batch, h h, channels size size) -> (batch, channels, h size, h size)."""
    side = math.isqrt(x.shape[1])
    x = x.unflatten(1, (side, side)).unflatten(3, (-1, size, size))  # (batch, h, w, channels, size, size)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class NoiseEmbed(nn.Module):
    """Turn noise levels into vectors: Fourier features of log(sigma) / 4 (Karras et al. 2022, table 1), then an MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Linear(N_FEATURES, config.hidden)
        self.down = nn.Linear(config.hidden, config.hidden)

    def forward(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (batch, hidden) in `dtype`, the weights', for noise levels sigma (batch,) above zero."""
        # log(sigma) / 4 spans about [-1.2, 1.1]: waves of 8 down to 1/8.
        sigma = at_least_fp32(sigma)
        waves = 2 * math.pi * torch.logspace(-3, 3, N_FEATURES // 2, base=2, dtype=sigma.dtype, device=sigma.device)
        angles = (sigma.log() / 4)[:, None] * waves
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.down(F.silu(self.up(features.to(dtype))))


def scale_input(x: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """Bring noisy samples x (batch, ...) at sigma (batch,) to standard deviation 1, in their dtype.

    This is c_in of Karras et al. 2022, table 1.
    """
    c_in = (at_least_fp32(sigma) ** 2 + sigma_data**2).rsqrt()
    return x * c_in.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)


class PointEmbed(nn.Module):
    """The first layers of a denoiser of points: their place and the noise level as vectors."""

    def __init__(self, config: PointsConfig) -> None:
        super().__init__()
        self.sigma_data = config.sigma_data
        self.linear = nn.Linear(config.dims, config.hidden)
        self.noise = NoiseEmbed(config)

    def forward(self, points: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Take points (batch, dims) and sigma (batch,); return hidden state and condition, both (batch, hidden)."""
        x = self.linear(scale_input(points, sigma, self.sigma_data))
        return x, self.noise(sigma, points.dtype)


class ImageEmbed(nn.Module, Sequence):
    """The first layers of a denoiser of images: patches with their positions, noise level and label as vectors."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.sigma_data = config.sigma_data
        self.no_label = config.n_classes
        self.linear = nn.Linear(config.patch_values, config.hidden)
        self.positions = nn.Parameter(torch.empty(config.n_patches, config.hidden))
        self.noise = NoiseEmbed(config)
        self.labels = nn.Embedding(config.n_classes + 1, config.hidden)

    def forward(self, images: Tensor, sigma: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the hidden state (batch, n_patches, hidden) and the condition (batch, 1, hidden).

        Of patches that several ranks share, return those of this one.
        images (batch, channels, size, size), sigma (batch,), label (batch,) int64 or None for no labels.
        """
        if label is None:
            label = torch.full(sigma.shape, self.no_label, device=sigma.device)
        patches = patchify(scale_input(images, sigma, self.sigma_data), self.patch_size)
        x = self.linear(self.take(patches, 1)) + self.take(self.positions, 0)
        return x, (self.noise(sigma, images.dtype) + self.labels(label))[:, None]


class MLP(nn.Module):
    """Two linear layers with GELU between them, `MLP_RATIO` times as wide in the middle."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, MLP_RATIO * hidden)
        self.down = nn.Linear(MLP_RATIO * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (..., hidden)."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Attention(nn.Module):
    """Self-attention. Rows of `qkv` are ordered by head (head 0: q, k, v; ...), so a contiguous split is whole heads.

    `qkv` has no bias: that of the keys never has a gradient but rounding, which Adam would blow up to full steps.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden // config.n_heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.proj = nn.Linear(config.hidden, config.hidden)
        self.attend = Attend(causal=False)

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (batch, n_patches, hidden)."""
        heads = self.qkv(x).unflatten(-1, (-1, 3, self.head_dim))  # (batch, patches, heads, 3, head_dim)
        q, k, v = heads.transpose(1, 2).unbind(-2)  # (batch, heads, patches, head_dim)
        return self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


class PointBlock(nn.Module):
    """A residual MLP that the noise level steers."""

    def __init__(self, config: PointsConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.hidden, 3 * config.hidden)
        self.mlp = MLP(config.hidden)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Take x and the condition, both (batch, hidden); return (batch, hidden)."""
        shift, scale, gate = self.modulation(F.silu(cond)).chunk(3, dim=-1)
        return x + gate * self.mlp(normalize(x) * (1 + scale) + shift)


class ImageBlock(nn.Module):
    """A DiT block: attention, then an MLP, both steered by noise level and label."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.modulation = nn.Linear(config.hidden, 6 * config.hidden)
        self.attn = Attention(config)
        self.mlp = MLP(config.hidden)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Take x (batch, n_patches, hidden) and the condition (batch, 1, hidden); return x's shape."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(cond)).chunk(6, dim=-1)
        x = x + gate1 * self.attn(normalize(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(normalize(x) * (1 + scale2) + shift2)


class Head(nn.Module, Sequence):
    """Predict the noise from the last hidden state; with the true noise, return the mean squared error."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size if isinstance(config, DiTConfig) else None
        self.modulation = nn.Linear(config.hidden, 2 * config.hidden)
        self.linear = nn.Linear(config.hidden, config.patch_values if isinstance(config, DiTConfig) else config.dims)

    def forward(self, x: Tensor, cond: Tensor, targets: Tensor | None) -> Tensor:
        """Return the noise in the samples' shape, (batch, dims) or (batch, channels, size, size), or patches of it.

        x (batch, hidden) or (batch, n_patches, hidden); cond as the first layers made it. With targets, the true noise,
        return the mean squared error, fp32, shape ().
        """
        shift, scale = self.modulation(F.silu(cond)).chunk(2, dim=-1)
        noise = self.linear(normalize(x) * (1 + scale) + shift)
        if targets is None:
            if self.patch_size is None or self.ranks > 1:  # points, or some of the patches
                return noise
            return unpatchify(noise, self.patch_size)
        if self.patch_size is not None:
            targets = self.take(patchify(targets, self.patch_size), 1)
        return F.mse_loss(at_least_fp32(noise), at_least_fp32(targets))


class Denoiser(nn.Module):
    """The whole model, or the part of it that a pipeline stage keeps (see paralab.models.spec, rule 2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        block: Callable[..., nn.Module] = ImageBlock if isinstance(config, DiTConfig) else PointBlock
        self.embed = ImageEmbed(config) if isinstance(config, DiTConfig) else PointEmbed(config)
        self.blocks = nn.ModuleDict({str(i): block(config) for i in range(config.n_blocks)})
        self.head = Head(config)

    def forward(self, *inputs: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Take (noisy samples, sigma (batch,)[, labels (batch,) int64]), or what the stage before returned.

        targets: the noise, of the samples' shape. Between stages travel the hidden state and the condition.
        """
        x, cond = self.embed(*inputs) if self.embed is not None else inputs
        for block in self.blocks.values():
            x = block(x, cond)
        return (x, cond) if self.head is None else self.head(x, cond, targets)


def init(config: Config, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Initialise a full tensor of any shape: biases 0, N(0, 0.02) where DiT has it (and for its zeros), else Xavier."""
    if name.endswith(".bias"):
        tensor.zero_()
    elif "modulation" in name or name in ("embed.positions", "embed.labels.weight", "head.linear.weight"):
        tensor.normal_(0.0, 0.02, generator=generator)
    else:
        nn.init.xavier_uniform_(tensor, generator=generator)


def flops(config: Config) -> Flops:
    """Count matrix products, attention in full, 2 a multiply-add, backward twice the forward pass.

    Norms, activations and the label table are left out; the samples' own gradient is counted, as is usual.
    """
    square = config.hidden**2
    if isinstance(config, DiTConfig):
        rows, values = config.n_patches, config.patch_values
        block = rows * (4 + 2 * MLP_RATIO) * square + 2 * rows**2 * config.hidden + 6 * square
    else:
        rows, values = 1, config.dims
        block = 2 * MLP_RATIO * square + 3 * square
    noise = N_FEATURES * config.hidden + square
    ends = 2 * rows * values * config.hidden + 2 * square  # first and last linear layer, last modulation
    return Flops(per_sample=3 * 2 * (config.n_blocks * block + noise + ends), formula="3x2xMAC matmul")


def example(config: Config, batch_size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return zeros in the form of a batch: (samples, sigma (batch,)[, labels (batch,) int64]) and noise, fp32.

    Samples and noise are (batch, channels, image_size, image_size) for images and (batch, dims) for points.
    """
    sigma = torch.ones(batch_size)
    if isinstance(config, DiTConfig):
        images = torch.zeros(batch_size, config.channels, config.image_size, config.image_size)
        return (images, sigma, torch.zeros(batch_size, dtype=torch.int64)), images
    points = torch.zeros(batch_size, config.dims)
    return (points, sigma), points


def tensor_plan(config: Config) -> dict[str, Style]:
    """Split the width of the MLPs, and in DiT the heads of attention."""
    plan: dict[str, Style] = {"blocks.*.mlp.up": "column", "blocks.*.mlp.down": "row"}
    if isinstance(config, DiTConfig):
        plan |= {"blocks.*.attn.qkv": "column", "blocks.*.attn.proj": "row"}
    return plan


def tensor_divides(config: Config) -> dict[str, int]:
    """Return what tp has to divide: the width of an MLP and, in DiT, the number of heads."""
    width = {"mlp_width": MLP_RATIO * config.hidden}
    return {"n_heads": config.n_heads} | width if isinstance(config, DiTConfig) else width


def sequence(config: Config) -> SequenceShape | None:
    """Return the sequence of patches of an image; None for points, which are no sequence."""
    if isinstance(config, DiTConfig):
        return SequenceShape(config.n_patches, config.n_heads, config.n_heads, causal=False)
    return None


def _mnist(*, hidden: int, n_heads: int, patch_size: int, n_blocks: int = 8) -> DiTConfig:
    return DiTConfig(
        hidden=hidden,
        n_blocks=n_blocks,
        n_heads=n_heads,
        patch_size=patch_size,
        image_size=28,
        channels=1,
        n_classes=10,
    )


_FORM = re.compile(f"dit-mnist-{dims('n_blocks', 'hidden', 'n_heads')}/{whole('patch_size')}")


def custom_size(text: str) -> DiTConfig | None:
    """Read a size such as dit-mnist-8x128x4/4 (layers, width, heads, patch); None for another form.

    Raises: ValueError when the heads do not divide the width, or the patches the image.
    """
    match = _FORM.fullmatch(text)
    return None if match is None else _mnist(**numbers(match, DiTConfig))


SIZES: Mapping[str, Config] = {
    "points": PointsConfig(hidden=128, n_blocks=8),
    "tiny-points": PointsConfig(hidden=32, n_blocks=8),
    "dit-mnist": _mnist(hidden=128, n_heads=4, patch_size=4),
    "tiny-dit": _mnist(hidden=32, n_heads=4, patch_size=7),
    # Peebles & Xie 2023, table 1, on the 32x32x4 latents of 256x256 images.
    "dit-s/2": DiTConfig(hidden=384, n_blocks=12, n_heads=6, patch_size=2),
    "dit-b/2": DiTConfig(hidden=768, n_blocks=12, n_heads=12, patch_size=2),
    "dit-l/2": DiTConfig(hidden=1024, n_blocks=24, n_heads=16, patch_size=2),
    "dit-xl/2": DiTConfig(hidden=1152, n_blocks=28, n_heads=16, patch_size=2),
}

SPEC = ModelSpec(
    name="diffusion",
    sizes=SIZES,
    custom_size=custom_size,
    custom_form="dit-mnist-LAYERSxWIDTHxHEADS/PATCH such as dit-mnist-8x128x4/4",
    default_size="points",
    tiny_size="tiny-points",
    build=Denoiser,
    init=init,
    example=example,
    n_blocks=lambda config: config.n_blocks,
    with_blocks=lambda config, n: replace(config, n_blocks=n),
    first=("embed",),
    last=("head",),
    flops=flops,
    data=lambda config: "mnist" if isinstance(config, DiTConfig) else "two_moons",
    tensor_plan=tensor_plan,
    tensor_divides=tensor_divides,
    sequence=sequence,
)
