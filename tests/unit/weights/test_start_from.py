"""What was trained here goes out to other programs, and training starts from what comes in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from paralab import cli
from paralab.commands import train
from paralab.errors import ConfigError, DataError
from paralab.inference.restore import restore
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.models.gpt2 import GPT2, GPT2Config
from paralab.models.gpt2_hf import to_transformers
from paralab.models.vocabulary import tokenizer_of
from paralab.planning.batches import training_batches
from paralab.processes.mesh import Mesh
from paralab.records.log import read_steps
from paralab.weights.hugging_face import from_hugging_face, to_hugging_face

QUICK = ["--model", "gpt2", "--size", "tiny", "--global-batch-size", "8", "--eval-samples", "8", "--eval-every", "3"]


def losses(folder: Path, *words: str) -> list[float]:
    assert train.main([*QUICK, "--out", str(folder), *words]) == 0
    return [record.loss for record in read_steps(folder / "log" / "rank0.jsonl")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("trained")
    losses(folder, "--steps", "3", "--learning-rate", "0.01")
    return folder


def export(run: Path, target: Path, form: str) -> Path:
    assert cli.main(["export", str(run), str(target), "--format", form]) == 0
    return target


CONVERTIBLE = [name for name, spec in SPECS.items() if spec.hugging_face is not None]


@pytest.mark.parametrize("model", CONVERTIBLE)
def test_transformers_computes_the_same_logits_and_training_starts_there(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--size", SPECS[model].tiny_size, "--learning-rate", "0.01"]
    fresh = losses(tmp_path / "run", *words, "--steps", "3")
    folder = export(tmp_path / "run", tmp_path / "hf", "hf")
    ours, tokens = restore(tmp_path / "run"), torch.arange(24).view(2, 12)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours.model(tokens), atol=1e-5, rtol=0)
    started = losses(tmp_path / "more", *words, "--steps", "1", "--init-from", str(folder))
    assert restore(tmp_path / "more").work.model_config == ours.work.model_config
    assert started[0] < 0.99 * fresh[0]


def test_training_starts_where_the_weights_were(trained: Path, tmp_path: Path) -> None:
    fresh = losses(tmp_path / "fresh", "--steps", "1")
    sources = [
        export(trained, tmp_path / "hf", "hf"),
        export(trained, tmp_path / "weights", "safetensors"),
        trained / "step-3",
    ]
    started = [losses(tmp_path / f"from-{path.name}", "--steps", "1", "--init-from", str(path)) for path in sources]
    assert started[1] == started[2] == pytest.approx(started[0], rel=1e-6)
    assert started[0][0] < 0.99 * fresh[0]


def test_a_run_that_goes_on_keeps_its_own_weights(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = losses(out, "--steps", "2", "--init-from", str(trained / "step-3"), "--lr-schedule", "constant")
    whole = losses(
        tmp_path / "whole", "--steps", "3", "--init-from", str(trained / "step-3"), "--lr-schedule", "constant"
    )
    assert losses(out, "--resume", "--steps", "3") == pytest.approx([*first, whole[2]], rel=1e-6)


def test_shorter_windows_use_the_first_positions(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(trained, tmp_path / "hf", "hf")
    told = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told[0].startswith(f"reading {trained}") and told[1] == f"writing {folder}", "how far it is"
    config, _ = from_hugging_face(folder)
    assert isinstance(config, GPT2Config)
    assert losses(tmp_path / "a", "--steps", "1", "--init-from", str(folder), "--seq-len", str(config.seq_len // 2))


SHAPE: dict[str, Any] = {"n_layers": 2, "hidden": 32, "n_heads": 2, "seq_len": 16}


def random_state(config: GPT2Config) -> tuple[GPT2, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = GPT2(config)
    with torch.no_grad():
        model.embed.tokens.weight[config.vocab_size :].zero_()
    return model, model.state_dict()


@pytest.mark.parametrize("vocab_size", [257, 50_304])
def test_a_gpt2_of_any_size_is_started_from(
    vocab_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path / "cache"))
    config = GPT2Config(**SHAPE, vocab_size=vocab_size, tokenizer=tokenizer_of(vocab_size))
    model, state = random_state(config)
    to_hugging_face(tmp_path / "hf", state, spec=SPECS["gpt2"], config=config)
    words = ["--steps", "1", "--learning-rate", "0", "--init-from", str(tmp_path / "hf")]
    found = losses(tmp_path / "run", *words)
    said = capsys.readouterr().out
    assert f"--size tiny gives way to that of {tmp_path / 'hf'}: 2x32x2v{vocab_size}" in said
    trained = restore(tmp_path / "run")  # without the folder that it started from
    assert trained.work.model_config == config
    assert all(torch.equal(trained.model.state_dict()[name], value) for name, value in state.items())
    work = replace(trained.work, division=Layout().divide(8))
    batch = next(iter(training_batches(work, Mesh(Layout(), torch.device("cpu")))))
    (inputs,) = batch.inputs
    assert found[0] == pytest.approx(model(inputs, targets=batch.targets).item(), rel=1e-5)
    assert losses(tmp_path / "run", "--resume", "--steps", "2")[:1] == found


def as_nanogpt(config: GPT2Config, state: dict[str, torch.Tensor], **args: object) -> dict:
    """Return what nanoGPT saves of a compiled model."""
    theirs = to_transformers(config, state).state_dict()
    names = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = {f"_orig_mod.{k}": v.T.contiguous() if k.endswith(names) else v for k, v in theirs.items()}
    sizes: dict[str, Any] = {"n_layer": config.n_layers, "n_head": config.n_heads, "n_embd": config.hidden}
    sizes |= {"bias": True, "block_size": config.seq_len, "vocab_size": config.vocab_size, "dropout": 0.0}
    return {"model": weights, "optimizer": {}, "model_args": sizes | args, "iter_num": 7, "config": {"seed": 1}}


def test_a_checkpoint_of_nanogpt_is_started_from_when_it_is_trusted(tmp_path: Path) -> None:
    config = GPT2Config(**SHAPE, vocab_size=257, tokenizer="bytes")
    _, state = random_state(config)
    file = tmp_path / "ckpt.pt"
    torch.save(as_nanogpt(config, state), file)
    words = ["--steps", "1", "--learning-rate", "0", "--init-from"]
    with pytest.raises(ConfigError, match=r"ckpt\.pt is a pickle.*add --trust"):
        losses(tmp_path / "a", *words, str(file))
    for number, source in enumerate((file, tmp_path)):
        losses(tmp_path / f"run{number}", *words, str(source), "--trust")
        assert restore(tmp_path / f"run{number}").work.model_config == config
        got = restore(tmp_path / f"run{number}").model.state_dict()
        assert all(torch.equal(got[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"model_args": {"bias": False}}, "trained with bias=False"),
        ({"model_args": {"n_head": 3}}, "hidden=32 is not a multiple of n_heads=3"),
        ({"model": {}}, "it lacks h.0.attn.c_attn.bias"),
        ({"model_args": None}, "has no model_args with n_layer"),
    ],
)
def test_what_is_no_such_checkpoint_is_said(saved: dict, said: str, tmp_path: Path) -> None:
    config = GPT2Config(**SHAPE, vocab_size=257, tokenizer="bytes")
    whole = as_nanogpt(config, random_state(config)[1])
    args = saved.get("model_args", {})
    torch.save(
        whole | saved | {"model_args": args if args is None else whole["model_args"] | args}, tmp_path / "ckpt.pt"
    )
    with pytest.raises(DataError, match=said):
        losses(tmp_path / "a", "--init-from", str(tmp_path), "--trust")
    (tmp_path / "ckpt.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"ckpt\.pt cannot be read"):
        losses(tmp_path / "a", "--init-from", str(tmp_path), "--trust")


def test_our_own_weights_have_to_have_a_place_each(trained: Path, tmp_path: Path) -> None:
    folder = export(trained, tmp_path / "weights", "safetensors")
    file = folder / "model.safetensors"
    values = load_file(file)
    save_file(values | {"blocks.0.adapter.weight": torch.zeros(2)}, file)
    with pytest.raises(ConfigError, match=r"has blocks\.0\.adapter\.weight, which the model has no place for"):
        losses(tmp_path / "a", "--init-from", str(folder))
    save_file(values | {"head.weight": values["embed.tokens.weight"] + 1}, file)
    with pytest.raises(ConfigError, match=r"head\.weight and embed\.tokens\.weight differ, and the model shares them"):
        losses(tmp_path / "b", "--init-from", str(folder))


def test_what_cannot_be_used_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(trained, tmp_path / "hf", "hf")
    assert cli.main(["export", str(trained), str(folder)]) == 2
    assert "give a new folder" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match=r"no facts\.json, config\.json"):
        losses(tmp_path / "a", "--init-from", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"is the folder of a run: give one of its checkpoints, such as .*/step-\d+$"):
        losses(tmp_path / "a", "--init-from", str(trained))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"a\.gguf is a GGUF file, .*: give that as --model hf:NAME"):
        losses(tmp_path / "a", "--init-from", str(tmp_path / "a.gguf"))
    with pytest.raises(ConfigError, match=r"--seq-len 32: .* has 16 positions, use that or fewer"):
        losses(tmp_path / "b", "--init-from", str(folder), "--seq-len", "32")
    with pytest.raises(ConfigError, match=r"is a gpt2: use --model gpt2"):
        train.main(["--model", "resnet", "--size", "tiny", "--out", str(tmp_path / "c"), "--init-from", str(folder)])
