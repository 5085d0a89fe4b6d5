"""Llama against transformers' Llama, and its declared numbers against published and counted ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paralab.errors import DataError
from paralab.models.llama import SIZES, SPEC, Llama, LlamaConfig, RopeScaling, size_of
from paralab.models.llama_hf import config_from, take, to_transformers
from paralab.weights.hugging_face import from_hugging_face, to_hugging_face

# more queries than keys, and an MLP whose width the key-value heads do not divide
CONFIG = LlamaConfig(n_layers=2, hidden=48, n_heads=6, n_kv_heads=2, ffn=50, seq_len=12, vocab_size=101)

# a window in which waves are kept, between, and stretched in full
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_seq_len=40)
VARIANTS = {
    "grouped": CONFIG,
    "one key": replace(CONFIG, n_kv_heads=1, ffn=64),
    "as many keys": replace(CONFIG, n_kv_heads=6, norm_eps=1e-6),
    "tied": replace(CONFIG, tied=True, rope_theta=10_000.0),
    "scaled": replace(CONFIG, rope_scaling=SCALING, rope_theta=100.0),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def random_checkpoint(folder: Path, config: LlamaConfig) -> Any:
    """Save a model of transformers with random values in every parameter, norms included."""
    theirs = to_transformers(config, Llama(config).state_dict())
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(folder)
    return theirs


@variants
def test_a_checkpoint_of_transformers_gives_its_logits_loss_and_gradients(config: LlamaConfig, tmp_path: Path) -> None:
    theirs = random_checkpoint(tmp_path, config)
    found, state = from_hugging_face(tmp_path)
    assert found == config
    ours, words = Llama(config), tokens(config)
    ours.load_state_dict(state)
    want = theirs(words, labels=words)
    assert want.logits.std() > 0.5
    assert_close(ours(words), want.logits, rtol=1e-5, atol=1e-5)
    loss = ours(words[:, :-1], targets=words[:, 1:])
    assert_close(loss, want.loss, rtol=1e-5, atol=0)
    loss.backward()
    want.loss.backward()
    gradients = take({name: parameter.grad for name, parameter in theirs.named_parameters()}, config)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name.__add__)


@variants
def test_transformers_reads_what_is_saved_and_gives_back_the_same_bits(config: LlamaConfig, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ours, words = initialized(config), tokens(config)
    to_hugging_face(tmp_path, ours.state_dict(), spec=SPEC, config=config)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(theirs(words).logits, ours(words), rtol=1e-5, atol=1e-5)
    back = take(theirs.state_dict(), config_from(theirs.config))
    assert back.keys() == ours.state_dict().keys()
    rows = slice(config.vocab_size)
    assert all(torch.equal(back[name][rows], value[rows]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"attention_bias": True}, "attention_bias=True, this Llama has attention_bias=False"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"head_dim": 16}, "head_dim=16, this Llama has hidden_size / num_attention_heads, 8"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type='linear'"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial"),
    ],
)
def test_a_variant_that_computes_something_else_is_refused(values: dict, said: str, tmp_path: Path) -> None:
    theirs = to_transformers(CONFIG, Llama(CONFIG).state_dict())
    for key, value in values.items():
        setattr(theirs.config, key, value)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        from_hugging_face(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tied", "name", "scale", "said"),
    [
        (False, "lm_head.weight", None, r"it lacks lm_head\.weight"),
        (True, "lm_head.weight", 2.0, r"lm_head\.weight was trained apart from the embedding"),
        (True, "lm_head.weight", 1.0, None),
        (False, "model.layers.0.self_attn.q_proj.bias", 1.0, "q_proj.bias, which this Llama has no place for"),
    ],
)
def test_every_tensor_has_a_place(tied: bool, name: str, scale: float | None, said: str | None, tmp_path: Path) -> None:
    random_checkpoint(tmp_path, replace(CONFIG, tied=tied))
    file = tmp_path / "model.safetensors"
    values = load_file(file)
    embedding = values["model.embed_tokens.weight"]
    values = {key: tensor for key, tensor in values.items() if key != name}
    save_file(values | ({name: embedding * scale} if scale is not None else {}), file, metadata={"format": "pt"})
    if said is None:
        from_hugging_face(tmp_path)
        return
    with pytest.raises(DataError, match=said):
        from_hugging_face(tmp_path)


def initialized(config: LlamaConfig) -> Llama:
    model = Llama(config)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        SPEC.init(config, name, parameter.data, torch.Generator().manual_seed(i))
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model


def tokens(config: LlamaConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, config.seq_len), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "published"),
    # what transformers counts for Llama 2, Llama 3.2 1B and 3B, and Llama 3
    [
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("1b", 1_235_814_400),
        ("3b", 3_212_749_824),
        ("8b", 8_030_261_248),
        ("70b", 70_553_706_496),
        ("405b", 405_853_388_800),
    ],
)
def test_parameter_counts_are_the_published_ones(size: str, published: int) -> None:
    assert sum(p.numel() for p in SPEC.on_meta(SIZES[size]).parameters()) == published


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
        ("2x64x4/2v50304t10000n1e-06", LlamaConfig(2, 64, 4, 2, 224, vocab_size=50_304, rope_theta=1e4, norm_eps=1e-6)),
        ("2x64x4/2s32/1/4/8192tied", LlamaConfig(2, 64, 4, 2, 224, rope_scaling=RopeScaling(32.0), tied=True)),
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
