"""GPT-2 against transformers' GPT-2, and its declared numbers against counted ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from paralab.errors import DataError
from paralab.models.gpt2 import GPT2, SIZES, SPEC, GPT2Config, size_of
from paralab.models.gpt2_hf import config_from, take, to_transformers
from paralab.weights import tokenizer_files
from paralab.weights.hugging_face import check, from_hugging_face, read_config, to_hugging_face

# four heads: with three, the order of heads and of q, k, v could not be told apart
CONFIG = GPT2Config(n_layers=3, hidden=48, n_heads=4, seq_len=12, vocab_size=101)


def loaded(config: GPT2Config, state: dict[str, Tensor]) -> GPT2:
    model = GPT2(config)
    model.load_state_dict(state)
    return model


def initialized(config: GPT2Config) -> GPT2:
    model = GPT2(config)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        SPEC.init(config, name, parameter.data, torch.Generator().manual_seed(i))
        if parameter.dim() == 1:  # zeros and ones would hide a bias or a norm in the wrong place
            parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    return model


def tokens(config: GPT2Config, length: int | None = None) -> Tensor:
    shape = (2, length or config.seq_len)
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def random_checkpoint(folder: Path) -> Any:
    """Save a model of transformers with random values in every parameter, biases and norms included."""
    theirs = to_transformers(CONFIG, GPT2(CONFIG).state_dict())
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(folder)
    return theirs


def test_a_checkpoint_of_transformers_gives_its_logits_and_loss(tmp_path: Path) -> None:
    theirs = random_checkpoint(tmp_path)
    config, state = from_hugging_face(tmp_path)
    assert config == CONFIG
    ours, words = loaded(config, state), tokens(config)
    with torch.no_grad():
        want = theirs(words, labels=words)
        assert want.logits.std() > 0.5
        assert_close(ours(words), want.logits, rtol=1e-5, atol=1e-5)
        assert_close(ours(words[:, :-1], targets=words[:, 1:]), want.loss, rtol=1e-5, atol=0)


def test_transformers_reads_what_is_saved(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    ours, words = initialized(CONFIG), tokens(CONFIG)
    to_hugging_face(tmp_path, ours.state_dict(), spec=SPEC, config=CONFIG)
    assert (tmp_path / "model.safetensors").exists()
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_close(theirs(words).logits, ours(words), rtol=1e-5, atol=1e-5)


def test_the_way_there_and_back_gives_the_same_bits() -> None:
    state = initialized(CONFIG).state_dict()
    theirs = to_transformers(CONFIG, state)
    config = config_from(theirs.config)
    back = take(theirs.state_dict(), config)
    assert config == CONFIG and back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("key", "value"), [("activation_function", "relu"), ("layer_norm_epsilon", 1e-6), ("n_inner", 100)]
)
def test_a_variant_that_computes_something_else_is_refused(tmp_path: Path, key: str, value: object) -> None:
    from transformers import GPT2LMHeadModel

    config = to_transformers(CONFIG, GPT2(CONFIG).state_dict()).config
    setattr(config, key, value)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"{key}={value!r}, this GPT-2 has {key}="):
        from_hugging_face(tmp_path)


def test_what_is_not_a_whole_gpt2_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"model_type is 'bert'.*of type gpt2"):
        from_hugging_face(tmp_path)
    random_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    values = load_file(weights)
    del values["transformer.h.1.attn.c_attn.weight"]
    save_file(values, weights, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks h\.1\.attn\.c_attn\.weight"):
        from_hugging_face(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"model\.safetensors is damaged, it cannot be read .*: copy or write it again"):
        from_hugging_face(tmp_path)


def change(folder: Path, **changed: Tensor | None) -> None:
    """Put tensors into the file of a checkpoint, under names whose dots are written as two underscores."""
    from safetensors.torch import load_file, save_file

    values = load_file(folder / "model.safetensors")
    values |= {name.replace("__", "."): tensor for name, tensor in changed.items() if tensor is not None}
    save_file(values, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    change(tmp_path, transformer__h__0__attn__c_attn__lora_A__weight=torch.zeros(2, 2))
    with pytest.raises(
        DataError, match=r"it has h\.0\.attn\.c_attn\.lora_A\.weight, which this GPT-2 has no place for"
    ):
        from_hugging_face(tmp_path)


def test_an_output_layer_of_its_own_is_refused_and_a_copy_of_the_embedding_is_not(tmp_path: Path) -> None:
    theirs = random_checkpoint(tmp_path)
    embedding = theirs.transformer.wte.weight.detach()
    change(tmp_path, lm_head__weight=embedding.clone())
    from_hugging_face(tmp_path)
    change(tmp_path, lm_head__weight=embedding + 1e-3)
    with pytest.raises(DataError, match=r"lm_head\.weight was trained apart from the embedding"):
        from_hugging_face(tmp_path)


def test_the_masks_that_older_versions_saved_are_passed_over(tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    change(tmp_path, transformer__h__0__attn__bias=mask, transformer__h__0__attn__masked_bias=torch.tensor(-1e4))
    from_hugging_face(tmp_path)


def test_a_base_model_in_several_files_is_read(tmp_path: Path) -> None:
    theirs = random_checkpoint(tmp_path / "whole")
    theirs.transformer.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    (_, want), (_, got) = from_hugging_face(tmp_path / "whole"), from_hugging_face(tmp_path / "parts")
    assert all(torch.equal(got[name], value) for name, value in want.items())
    next((tmp_path / "parts").glob("model-*.safetensors")).unlink()
    with pytest.raises(DataError, match=r"model-0.* cannot be read \(No such file"):
        from_hugging_face(tmp_path / "parts")


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("transformer.wte.weight", torch.ones(101, 48, dtype=torch.int8), "is int8 .*, floating-point"),
        ("transformer.ln_f.bias", torch.zeros(31), r"ln_f\.bias is float32 \(31,\), floating-point \(48,\) is needed"),
    ],
)
def test_tensors_of_another_kind_or_shape_are_refused(name: str, tensor: Tensor, said: str, tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    change(tmp_path, **{name.replace(".", "__"): tensor})
    with pytest.raises(DataError, match=said):
        check(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("quantization_config", {"bits": 4}, "is quantized"), ("n_layer", "2", "field 'n_layer'.*expected int")],
)
def test_a_configuration_that_says_something_else_is_refused(
    key: str, value: object, said: str, tmp_path: Path
) -> None:
    random_checkpoint(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(DataError, match=said):
        read_config(tmp_path)


@pytest.mark.parametrize("several", [False, True])
def test_weights_in_pickles_are_read_when_they_are_trusted_and_run_nothing(several: bool, tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    want = from_hugging_face(tmp_path)[1]
    file = tmp_path / "model.safetensors"
    values = list(load_file(file).items())
    file.unlink()
    names = ["pytorch_model-1.bin", "pytorch_model-2.bin"] if several else ["pytorch_model.bin"]
    for part, name in enumerate(names):
        torch.save(dict(values[part :: len(names)]), tmp_path / name)
    places = {name: names[i % len(names)] for i, (name, _) in enumerate(values)}
    if several:
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(DataError, match=r"in a pickle \(pytorch_model.*add --trust"):
        from_hugging_face(tmp_path)
    got = from_hugging_face(tmp_path, trust=True)[1]
    assert all(torch.equal(got[name], value) for name, value in want.items())
    torch.save({"x": Path("no tensor")}, tmp_path / names[0])
    with pytest.raises(DataError, match="cannot be read"):
        from_hugging_face(tmp_path, trust=True)


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_another_encoding_is_told_from_ours(name: str, tmp_path: Path) -> None:
    tokenizer_files.save(name, tmp_path, longest=8)
    assert tokenizer_files.differs_from(name, tmp_path) == ""
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text())
    theirs = values["model"]["vocab"]
    file.unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(theirs | {"<|endoftext|>": len(theirs)}))
    assert tokenizer_files.differs_from(name, tmp_path) == ""
    one, other = list(theirs)[60:62]
    (tmp_path / "vocab.json").write_text(json.dumps(theirs | {one: theirs[other], other: theirs[one]}))
    assert tokenizer_files.differs_from(name, tmp_path) == "vocab.json"


def test_a_gpt2_with_an_encoding_of_its_own_is_refused(tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    (tmp_path / "vocab.json").write_text('{"der": 0, "die": 1}')
    with pytest.raises(DataError, match=r"has an encoding of its own \(vocab\.json is not GPT-2's\)"):
        check(tmp_path)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"has an adapter \(adapter_config\.json\).*merge it first"):
        from_hugging_face(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "evil"])
def test_python_of_a_folder_is_neither_run_nor_asked_about(kind: str, tmp_path: Path) -> None:
    random_checkpoint(tmp_path)
    file, ran = tmp_path / "config.json", tmp_path / "ran"
    (tmp_path / "configuration_evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    auto_map = {"AutoConfig": "configuration_evil.EvilConfig"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": kind, "auto_map": auto_map}))
    said = {"gpt2": r"brings Python of its own.*add --trust", "evil": r"its model_type is 'evil'"}[kind]
    with pytest.raises(DataError, match=said):
        from_hugging_face(tmp_path)
    if kind == "gpt2":
        assert from_hugging_face(tmp_path, trust=True)[0] == CONFIG
    assert not ran.exists()


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("2x64x4", (2, 64, 4, 50_257, "gpt2")),
        ("3X48x3v50304", (3, 48, 3, 50_304, "gpt2")),
        ("1x8x2v257", (1, 8, 2, 257, "bytes")),
    ],
)
def test_a_size_may_be_written_in_numbers(text: str, sizes: tuple) -> None:
    config = SPEC.config(text)
    assert (config.n_layers, config.hidden, config.n_heads, config.vocab_size, config.tokenizer) == sizes
    assert size_of(config) == text.lower()


def test_a_size_in_numbers_that_is_a_preset_has_its_name() -> None:
    assert size_of(SPEC.config("12x768x12")) == "124m"
    assert all(
        SPEC.config(size_of(config)) == replace(config, seq_len=SPEC.config(size_of(config)).seq_len)
        for config in SIZES.values()
    )
    with pytest.raises(ValueError, match="hidden=10 is not a multiple of n_heads=3"):
        SPEC.config("2x10x3")


def test_a_name_out_of_reach_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf download acme/none --local-dir none") as caught:
        from_hugging_face("acme/none")
    assert "\n" not in str(caught.value)


def test_a_token_does_not_see_those_after_it() -> None:
    model, words = initialized(CONFIG), tokens(CONFIG)
    changed = words.clone()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(words), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


def test_shorter_sequences_are_the_beginning_of_longer_ones() -> None:
    model, words = initialized(CONFIG), tokens(CONFIG)
    with torch.no_grad():
        assert_close(model(words[:, :5]), model(words)[:, :5])


@pytest.mark.parametrize(
    ("size", "parameters"),
    # what transformers counts for gpt2, gpt2-medium, gpt2-large and gpt2-xl
    [("124m", 124_439_808), ("355m", 354_823_168), ("774m", 774_030_080), ("1.5b", 1_557_611_200)],
)
def test_parameter_counts_are_the_published_ones(size: str, parameters: int) -> None:
    config = SIZES[size]
    with torch.device("meta"):
        model = GPT2(config)
    padding = (config.padded_vocab - config.vocab_size) * config.hidden
    assert sum(p.numel() for p in model.parameters()) == parameters + padding


# Brown et al. 2020, table 2.1, rounds its counts
@pytest.mark.parametrize(
    ("size", "billions"),
    [("gpt3-1.3b", 1.3), ("gpt3-2.7b", 2.7), ("gpt3-6.7b", 6.7), ("gpt3-13b", 13.0), ("gpt3-175b", 175.0)],
)
def test_the_gpt3_family_has_the_published_sizes(size: str, billions: float) -> None:
    with torch.device("meta"):
        model = GPT2(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("size", ["tiny", "nano", "124m"])
def test_flops_equal_the_counted_ones(size: str) -> None:
    config = SIZES[size]
    with torch.device("meta"):
        model = GPT2(config)
        (words,), _ = SPEC.example(config, 2)
    with FlopCounterMode(display=False) as counter:
        model(words).sum().backward()
    assert counter.get_total_flops() == 2 * SPEC.flops(config).per_sample


def test_init_follows_the_paper() -> None:
    config = replace(SIZES["124m"], n_layers=2)

    def std(name: str, shape: tuple[int, ...]) -> float:
        tensor = torch.empty(shape)
        SPEC.init(config, name, tensor, torch.Generator().manual_seed(0))
        return tensor.std().item()

    assert std("blocks.0.attn.qkv.weight", (300, 300)) == pytest.approx(0.02, rel=0.02)
    assert std("blocks.1.attn.proj.weight", (300, 300)) == pytest.approx(0.01, rel=0.02)  # 0.02 / sqrt(2 x 2)
    assert std("blocks.1.mlp.down.weight", (300, 300)) == pytest.approx(0.01, rel=0.02)
    embedding = torch.empty(config.padded_vocab, 4)
    SPEC.init(config, "embed.tokens.weight", embedding, torch.Generator().manual_seed(0))
    assert embedding[config.vocab_size :].count_nonzero() == 0
    assert embedding[: config.vocab_size].std().item() == pytest.approx(0.02, rel=0.02)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden=48 is not a multiple of n_heads=5"):
        replace(CONFIG, n_heads=5)
