"""--tokenizer FILE: a model gets the vocabulary of a tokenizer, keeps it, and goes on with no other."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from paralab import checkpoint
from paralab.checkpoint.same_work import TOKENIZER
from paralab.commands import export, generate, train
from paralab.curation import train_tokenizer
from paralab.data.assets import read_asset
from paralab.data.text import TokenWindows
from paralab.data.tokenizer import get_tokenizer
from paralab.errors import ConfigError, DataError
from paralab.inference.restore import restore
from paralab.models.vocabulary import padded
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.records.reading import read
from paralab.training.options import rows_file

TEXT = read_asset("alice.txt").decode()
QUICK = "--size tiny --global-batch-size 4 --eval-samples 4 --threads 1 --steps 1".split()
SIZES = {"gpt2": "2x16x2", "llama": "2x16x2/1f16", "mixtral": "2x16x2/1f16e4"}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer.save(train_tokenizer.train("bpe", [TEXT], vocabulary=300), tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def run(bpe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train.main([*QUICK, "--tokenizer", str(bpe), "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("model", SIZES)
def test_a_model_has_as_many_rows_as_the_tokenizer_has_tokens(model: str, bpe: Path) -> None:
    config: Any = resolve(RunConfig(model=model, size=None, tokenizer=str(bpe), nproc=1)).model_config
    assert (config.vocab_size, config.padded_vocab, config.tokenizer) == (300, padded(300), str(bpe))


def test_a_size_with_a_vocabulary_keeps_it(bpe: Path) -> None:
    work = resolve(RunConfig(size="2x16x2v512", tokenizer=str(bpe), nproc=1))
    data = work.dataset()
    assert vars(work.model_config)["vocab_size"] == 512
    assert isinstance(data, TokenWindows) and data.tokenizer == get_tokenizer(str(bpe)).name
    small = resolve(RunConfig(size="2x16x2v290", tokenizer=str(bpe), nproc=1))
    with pytest.raises(DataError, match="vocab_size=290 does not hold the 300 tokens"):
        small.dataset()


@pytest.mark.parametrize("model", ["resnet", "diffusion"])
def test_a_model_without_a_vocabulary_is_refused(model: str, bpe: Path) -> None:
    with pytest.raises(ConfigError, match=f"--tokenizer does not apply to {model}"):
        resolve(RunConfig(model=model, tokenizer=str(bpe), nproc=1))


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere.json", "cannot be read"), ("words", "is unknown"), ("byte", "bytes")]
)
def test_a_tokenizer_that_is_not_there_is_refused(name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        resolve(RunConfig(tokenizer=name, nproc=1))


def test_the_row_and_the_checkpoint_say_which_it_was(run: Path, bpe: Path) -> None:
    (row,) = read(rows_file(run))
    name = get_tokenizer(str(bpe)).name
    assert (row.tokenizer, row.vocabulary) == (name, 300)
    assert shlex.join(["--tokenizer", str(bpe)]) in row.command
    facts = checkpoint.read_facts(checkpoint.latest(run))
    assert facts.work[TOKENIZER] == name and facts.work["vocab_size"] == 300


def test_it_goes_on_with_the_same_content_under_any_path_and_with_no_other(
    run: Path, bpe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    moved = Path(shutil.copytree(bpe.parent, tmp_path / "moved")) / "tokenizer.json"
    again = [*QUICK, "--steps", "2", "--out", str(folder), "--resume", "--tokenizer"]
    other = train_tokenizer.train("bpe", [TEXT[1000:]], vocabulary=300)
    for tokenizer in (str(train_tokenizer.save(other, tmp_path / "other")), "bytes"):
        with pytest.raises(ConfigError, match=r"was trained with tokenizer tokenizer\.json .*, this run has"):
            train.main([*again, tokenizer])
    assert train.main([*again, str(moved)]) == 0


def test_it_is_restored_with_the_file_or_a_copy_of_it_and_with_no_other(
    run: Path, bpe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(run), "--prompt", "Alice", "--tokens", "5", "--greedy"]
    generate.main(words)
    said = capsys.readouterr().out
    copy = Path(shutil.copytree(bpe.parent, tmp_path / "copy")) / "tokenizer.json"
    generate.main([*words, "--tokenizer", str(copy)])
    assert capsys.readouterr().out == said
    copy.write_text(copy.read_text().replace("<|endoftext|>", "<|end|>"))
    (copy.parent / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    with pytest.raises(DataError, match=r"was trained with tokenizer\.json .* is tokenizer\.json"):
        restore(run, tokenizer=str(copy))


def test_an_exported_model_has_its_tokenizer_and_its_end_of_text(run: Path, bpe: Path, tmp_path: Path) -> None:
    assert export.main([str(run), str(tmp_path / "hf")]) == 0
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "hf"), get_tokenizer(str(bpe))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    text = "Alice fell, naïvely 🙂\n"
    assert theirs(text)["input_ids"] == ours.encode([text])[0].tolist()
    saying = (theirs, model.config, model.generation_config)
    assert {one.eos_token_id for one in saying} == {one.bos_token_id for one in saying} == {ours.end_of_text}
    assert model.config.vocab_size == 300
    ids = ours.encode([f"{text}<|endoftext|>{text}"])[0]
    assert np.count_nonzero(ids == ours.end_of_text) == 1, "the mark is one token, whose bytes count"
    assert ours.n_bytes(ids) == 2 * len(text.encode()) + len("<|endoftext|>")
