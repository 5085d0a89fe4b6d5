"""Sizes that are no presets: read and written back, for every model that has such."""

import pytest

from paralab.errors import ConfigError
from paralab.models import SPECS
from paralab.models.sizes import config_of_size

WORDS = {
    "gpt2": ("2x64x4", "2x64x4v257", "2x64x4v50304"),
    "llama": ("2x64x4/2", "2x64x4/2f100v300t10000n1e-06s8/1/4/8192tied", "2x64x4/4s2.5/1/4/16"),
    "mixtral": ("2x64x4/2e4/1", "2x64x4/2e4/2f10h20c1.25b0.5z0v300t10000n1e-06tied"),
}


@pytest.mark.parametrize(("model", "word"), [(model, word) for model, words in WORDS.items() for word in words])
def test_a_size_is_written_as_it_was_read(model: str, word: str) -> None:
    spec = SPECS[model]
    assert spec.size_of is not None
    assert spec.size_of(spec.config(word)) == word


@pytest.mark.parametrize("model", WORDS)
def test_every_preset_is_called_by_its_name(model: str) -> None:
    spec = SPECS[model]
    assert spec.size_of is not None
    names = {name: spec.size_of(config) for name, config in spec.sizes.items()}
    same = {"gpt3-125m": "124m", "gpt3-350m": "355m"}  # but for their windows, which are no parameters of the word
    assert names == {name: same.get(name, name) for name in spec.sizes}


@pytest.mark.parametrize("word", ["2x64x4t1e999", "2x64x4n1e400", "2x64x4s1e309"])
def test_a_number_too_large_for_a_float_is_refused_by_name(word: str) -> None:
    with pytest.raises(ValueError, match=r"(rope_theta|norm_eps|factor)=1e\d+ is too large"):
        SPECS["llama"].config(word)


@pytest.mark.parametrize("word", ["0x64x4", "2x64", "2x64x4v0", "2x64x4V257 ", "x2x64x4", "2x64x4t-1", "2x64x4tied8"])
def test_another_form_is_no_size(word: str) -> None:
    with pytest.raises(KeyError):
        SPECS["llama"].config(word)


@pytest.mark.parametrize(
    ("model", "word", "meant"),
    [
        ("gpt2", "gpt2-xl", "1.5b"),
        ("gpt2", "gpt2", "124m"),
        ("gpt2", "GPT2_small", "124m"),
        ("gpt2", "medium", "355m"),
        ("gpt2", "1558M", "1.5b"),
        ("resnet", "resnet-50", "50"),
        ("resnet", "resnet50", "50"),
        ("resnet", "ResNet_50", "50"),
        ("llama", "7b", "llama2-7b"),
        ("llama", "Llama-3.1-70B-Instruct", "70b"),
        ("llama", "meta-llama/Llama-2-7b-hf", "llama2-7b"),
        ("llama", "TinyLlama-1.1B", "1b"),
        ("mixtral", "mistralai/Mixtral-8x7B-v0.1", "8x7b"),
        ("diffusion", "dit-xl", "dit-xl/2"),
        ("diffusion", "XL/2", "dit-xl/2"),
        ("diffusion", "xl", "dit-xl/2"),
    ],
)
def test_a_size_that_others_call_otherwise_is_found(model: str, word: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of_size(SPECS[model], word)
    assert str(caught.value).startswith(f"--size {word} is unknown for {model} (did you mean {meant}?): use one of")
