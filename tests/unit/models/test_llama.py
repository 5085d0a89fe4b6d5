"""Llama's declared numbers against published and counted ones."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paralab.models.llama import SIZES, SPEC, Llama, LlamaConfig, RopeScaling, size_of

# more queries than keys, and an MLP whose width the key-value heads do not divide
CONFIG = LlamaConfig(n_layers=2, hidden=48, n_heads=6, n_kv_heads=2, ffn=50, seq_len=12, vocab_size=101)


def initialized(config: LlamaConfig) -> Llama:
    model = Llama(config)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        SPEC.init(config, name, parameter.data, torch.Generator().manual_seed(i))
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model


def tokens(config: LlamaConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, config.seq_len), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "published", "shared"),
    # what transformers counts for Llama 3.2 1B and 3B, which share the embedding with the output layer, and Llama 3
    [
        ("1b", 1_235_814_400, True),
        ("3b", 3_212_749_824, True),
        ("8b", 8_030_261_248, False),
        ("70b", 70_553_706_496, False),
        ("405b", 405_853_388_800, False),
    ],
)
def test_parameter_counts_are_the_published_ones(size: str, published: int, shared: bool) -> None:
    config = SIZES[size]
    counted = sum(p.numel() for p in SPEC.on_meta(config).parameters())
    assert counted == published + (config.vocab_size * config.hidden if shared else 0)


@pytest.mark.parametrize("config", [SIZES["tiny"], SIZES["160m"], CONFIG], ids=["tiny", "160m", "uneven"])
def test_flops_equal_the_counted_ones(config: LlamaConfig) -> None:
    model = SPEC.on_meta(config)
    (words,), _ = SPEC.example(config, 2)
    with FlopCounterMode(display=False) as counter:
        model(words.to("meta")).sum().backward()
    assert counter.get_total_flops() == 2 * SPEC.flops(config).per_sample


def test_a_token_does_not_see_those_after_it() -> None:
    model, words = initialized(CONFIG), tokens(CONFIG)
    changed = words.clone()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(words), model(changed)
    assert_close(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("2x64x4/2", LlamaConfig(2, 64, 4, 2, ffn=224)),
        ("2x64x4/4f96v257", LlamaConfig(2, 64, 4, 4, ffn=96, vocab_size=257, tokenizer="bytes")),
        ("2x64x4/2v32000t10000n1e-06", LlamaConfig(2, 64, 4, 2, 224, vocab_size=32_000, rope_theta=1e4, norm_eps=1e-6)),
        ("2x64x4/2s32/1/4/8192", LlamaConfig(2, 64, 4, 2, 224, rope_scaling=RopeScaling(32.0))),
    ],
)
def test_a_size_may_be_written_in_numbers(text: str, config: LlamaConfig) -> None:
    assert SPEC.config(text.upper()) == config
    assert size_of(config) == text


def test_short_forms_and_presets_have_one_name() -> None:
    assert size_of(SPEC.config("2x64x4")) == "2x64x4/4"
    assert SPEC.config("2x64x4/2s8").rope_scaling == RopeScaling()
    assert all(size_of(replace(config, seq_len=7)) == name for name, config in SIZES.items())
    with pytest.raises(ValueError, match="n_heads=4 is not a multiple of n_kv_heads=3"):
        SPEC.config("2x64x4/3")
    with pytest.raises(KeyError):
        SPEC.config("2x64x4/2s8/1")
