"""Weights of models of transformers: refused where they are not those of the model, and written as they came."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from paralab import cli
from paralab.errors import ConfigError, DataError
from paralab.models.hugging_face.make import spec_of
from paralab.options.config import RunConfig
from paralab.weights import causal_lm
from paralab.weights.start_from import adopt, unread
from tests import hugging_face


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return hugging_face.write("qwen3", tmp_path / "qwen3", weights=True)


def test_weights_are_read_by_the_names_of_the_model(folder: Path) -> None:
    spec = spec_of(str(folder))
    causal_lm.check(folder, spec.config())
    state = causal_lm.read(folder, spec.config())
    theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) and tensor.dtype == torch.float32 for name, tensor in state.items())


def _rewrite(folder: Path, change: Any) -> None:
    file = folder / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "its weights lack model.norm.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "the model has no place for its extra"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(2)}), "is its model.norm.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder: Path, change: Any, problem: str) -> None:
    _rewrite(folder, change)
    with pytest.raises(DataError, match=problem) as error:
        causal_lm.read(folder, spec_of(str(folder)).config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "model.safetensors is damaged, it cannot be read .*: copy or write it again"),
        (b"nothing of the kind", "model.safetensors is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n", "type `git lfs pull` in "),
        (save({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "model.norm.weight holds I8, and weights are"),
        (None, "model-2.safetensors cannot be read .No such file"),
    ],
)
def test_damaged_weights_are_refused(folder: Path, content: bytes | None, problem: str) -> None:
    file = folder / "model.safetensors"
    if content is None:
        file.rename(folder / "model-1.safetensors")
        placed = {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=problem) as error:
        causal_lm.check(folder, spec_of(str(folder)).config())
    assert "\n" not in str(error.value)


def test_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    run = RunConfig(model=f"hf:{folder}")
    assert adopt(run, folder, trust=False) == (run, "")
    other = hugging_face.write("qwen3", tmp_path / "wide", weights=True, intermediate_size=96)
    with pytest.raises(ConfigError, match=r"down_proj.weight of shape \(32, 96\), and the model \(32, 64\)"):
        adopt(run, other, trust=False)
    without = hugging_face.write("qwen3", tmp_path / "without")
    with pytest.raises(ConfigError, match="has no weights"):
        adopt(run, without, trust=False)
    (without / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"in a pickle .* add --trust"):
        adopt(run, without, trust=False)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="has an adapter"):
        adopt(run, folder, trust=False)


def test_a_model_is_written_as_it_came(tmp_path: Path) -> None:
    spec = spec_of(str(hugging_face.write("gpt2", tmp_path / "gpt2", attn_pdrop=0.3)))
    config = spec.config()
    model = spec.built(config, seed=4)
    with torch.no_grad():
        logits = model(torch.arange(16)[None])
    said = causal_lm.write(tmp_path / "out", config, model, source=spec.name)
    assert said == "with the tokenizer bytes that texts were read with"
    assert AutoConfig.from_pretrained(tmp_path / "out").attn_pdrop == 0.3
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(torch.arange(16)[None]).logits, logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("Alice")["input_ids"] == list(b"Alice")


def test_a_run_starts_from_weights_and_ends_as_a_folder(folder: Path, tmp_path: Path) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "out"
    short = ["--steps", "1", "--warmup", "0", "--global-batch-size", "2", "--seq-len", "16", "--eval-samples", "2"]
    begun = ["--model", f"hf:{folder}", "--init-from", str(folder), "--strategy", "single", "--learning-rate", "0"]
    assert cli.main(["train", *begun, *short, "--out", run]) == 0
    assert cli.main(["export", run, str(out)]) == 0
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (out, folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # a learning rate of 0 leaves them as they were
    assert json.loads((out / "config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_weights_that_are_not_read_are_said(folder: Path, tmp_path: Path) -> None:
    assert f"--init-from {folder} starts from them" in unread(RunConfig(model=f"hf:{folder}"))
    assert unread(RunConfig(model=f"hf:{hugging_face.write('qwen3', tmp_path / 'without')}")) == ""
    assert unread(RunConfig(model="gpt2")) == ""
