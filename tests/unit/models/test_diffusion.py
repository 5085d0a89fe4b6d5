"""The denoisers against torch's own attention and convolution, counted FLOPs, and a case with a known optimum."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paralab.models.diffusion import (
    N_FEATURES,
    SIZES,
    SPEC,
    Attention,
    Config,
    Denoiser,
    DiTConfig,
    NoiseEmbed,
    PointsConfig,
    init,
    patchify,
    scale_input,
    unpatchify,
)


def initialized(config: Config) -> Denoiser:
    model = Denoiser(config)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        init(config, name, tensor.detach(), generator)
    return model


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_noise_levels_keep_the_precision_of_the_run() -> None:
    embed = NoiseEmbed(SIZES["tiny-points"])
    for name in ("up", "down"):
        setattr(embed, name, nn.Identity())
    sigma = torch.tensor([0.01, 0.7, 20.0], dtype=torch.float64)
    waves = 2 * math.pi * 2 ** torch.linspace(-3, 3, N_FEATURES // 2, dtype=torch.float64)
    angles = sigma.log()[:, None] / 4 * waves
    want = F.silu(torch.cat([angles.cos(), angles.sin()], dim=1))
    assert_close(embed(sigma, torch.float64), want, rtol=0, atol=1e-12)


def test_patches_go_back_to_images() -> None:
    images = random(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


def test_linear_of_patches_is_a_strided_convolution() -> None:
    images, conv = random(2, 3, 12, 12), nn.Conv2d(3, 8, 4, stride=4)
    y = F.linear(patchify(images, 4), conv.weight.flatten(1), conv.bias)
    assert_close(y, conv(images).flatten(2).transpose(1, 2))


def test_attention_equals_torch() -> None:
    config = SIZES["tiny-dit"]
    assert isinstance(config, DiTConfig)
    ours = Attention(config)
    theirs = nn.MultiheadAttention(config.hidden, config.n_heads, batch_first=True)
    by_head = ours.qkv.weight.detach().unflatten(0, (config.n_heads, 3, -1))  # (heads, 3, head_dim, hidden)
    state = {
        "in_proj_weight": by_head.transpose(0, 1).flatten(0, 2),
        "in_proj_bias": torch.zeros(3 * config.hidden),
        "out_proj.weight": ours.proj.weight,
        "out_proj.bias": ours.proj.bias,
    }
    theirs.load_state_dict(state)
    x = random(2, 9, config.hidden)
    assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("size", ["tiny-points", "tiny-dit"])
def test_loss_is_the_mean_squared_error_of_the_prediction(size: str) -> None:
    config = SIZES[size]
    model = initialized(config)
    inputs, targets = SPEC.example(config, 3)
    noise = random(*targets.shape)
    predicted = model(*inputs)
    assert predicted.shape == noise.shape
    assert_close(model(*inputs, targets=noise), (predicted - noise).square().mean())


@pytest.mark.parametrize("size", ["tiny-points", "tiny-dit"])
def test_every_input_matters(size: str) -> None:
    config = SIZES[size]
    model = initialized(config)
    inputs, _ = SPEC.example(config, 2)
    before = model(*inputs)
    for i, tensor in enumerate(inputs):
        changed = [*inputs]
        changed[i] = tensor + 1
        assert not torch.allclose(model(*changed), before), i


def test_no_label_is_the_last_label() -> None:
    config = SIZES["tiny-dit"]
    model, images, sigma = initialized(config), random(2, 1, 28, 28), torch.ones(2)
    none = torch.full((2,), config.n_classes)
    assert torch.equal(model(images, sigma), model(images, sigma, none))


def test_input_has_unit_variance_at_every_noise_level() -> None:
    sigma = torch.tensor([0.01, 0.5, 80.0])
    x = (0.5 * random(3, 100_000)) + sigma[:, None] * random(3, 100_000, seed=1)
    assert_close(scale_input(x, sigma, 0.5).std(dim=1), torch.ones(3), rtol=0.02, atol=0)


@pytest.mark.parametrize("size", SIZES)
def test_flops_equal_the_counted_ones(size: str) -> None:
    config = SIZES[size]
    with torch.device("meta"):
        model = Denoiser(config)
        (x, sigma, *label), targets = SPEC.example(config, 2)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x.requires_grad_(), sigma.requires_grad_(), *label, targets=targets.detach()).backward()
    assert counter.get_total_flops() == 2 * SPEC.flops(config).per_sample


@pytest.mark.parametrize("size, millions", [("dit-s/2", 33), ("dit-b/2", 130), ("dit-l/2", 458), ("dit-xl/2", 675)])
def test_parameter_counts_are_the_published_ones(size: str, millions: int) -> None:
    # Peebles & Xie 2023, table 4; theirs predicts a variance too and has a bias on keys.
    with torch.device("meta"):
        model = Denoiser(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_learns_the_optimal_denoiser_of_a_gaussian() -> None:
    """For x ~ N(0, s^2) the least mean squared error of predicting the noise is s^2 / (s^2 + sigma^2)."""
    config = replace(SIZES["tiny-points"], n_blocks=2, sigma_min=0.1, sigma_max=10.0)
    assert isinstance(config, PointsConfig)
    model, generator = initialized(config), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def draw(sigma: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(len(sigma), 2, generator=generator)
        return config.sigma_data * torch.randn(len(sigma), 2, generator=generator) + sigma[:, None] * noise, noise

    for _ in range(300):
        sigma = 10 ** (2 * torch.rand(256, generator=generator) - 1)
        x, noise = draw(sigma)
        loss = model(x, sigma, targets=noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for level in (0.1, 0.5, 1.0, 3.0):
        sigma = torch.full((20_000,), level)
        x, noise = draw(sigma)
        least = config.sigma_data**2 / (config.sigma_data**2 + level**2)
        with torch.no_grad():
            assert model(x, sigma, targets=noise).item() == pytest.approx(least, abs=0.03)


def test_config_refuses() -> None:
    config = SIZES["tiny-dit"]
    assert isinstance(config, DiTConfig)
    with pytest.raises(ValueError, match="n_heads=5"):
        replace(config, n_heads=5)
    with pytest.raises(ValueError, match="patch_size=5"):
        replace(config, patch_size=5)


def test_a_denoiser_of_digits_has_the_size_that_is_written() -> None:
    assert SPEC.config("dit-mnist-8x128x4/4") == SPEC.config("dit-mnist")
    assert SPEC.config("DiT-MNIST-2x32x4/7") == replace(SPEC.config("tiny-dit"), n_blocks=2)
    with pytest.raises(ValueError, match="image_size=28 is not a multiple of patch_size=5"):
        SPEC.config("dit-mnist-8x128x4/5")
    with pytest.raises(KeyError):
        SPEC.config("dit-mnist-8x128/4")
