"""Texts encoded with the tokenizer.json of a model: ids as the library gives them, of more than 16 bits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from paralab.data.text import open_text
from paralab.data.tokenizer import get_tokenizer
from paralab.errors import DataError
from paralab.models.gpt2 import GPT2Config

END, WORD = 100_000, 99_999  # ids that take more than 16 bits


def written(folder: Path, *, end: object = "<end>", config: dict | None = None) -> Path:
    """Write a tokenizer of words; return the path of its file."""
    words = {word: number for number, word in enumerate(("[?]", "one", "two", "three"))}
    tokenizer = Tokenizer(models.WordLevel({**words, "million": WORD, "<end>": END}, unk_token="[?]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def test_windows_hold_its_ids(tmp_path: Path) -> None:
    name = str(written(tmp_path))
    text = tmp_path / "text.txt"
    text.write_text("one million two three " * 40)
    config = GPT2Config(1, 8, 1, tokenizer=name, vocab_size=END + 1, seq_len=4)
    windows = open_text(f"file:{text}", config=config, split="train")
    batch = windows.collate(np.array([0]), positions=np.array([0]), seed=0)
    assert batch.inputs[0].tolist() == [[1, WORD, 2, 3]] and batch.targets.tolist() == [[WORD, 2, 3, 1]]
    assert batch.inputs[0].dtype == torch.int64
    assert windows.file.tokens().dtype == np.uint32
    assert windows.tokenizer.startswith("tokenizer.json ")


@pytest.mark.parametrize(
    ("end", "config"),
    [("<end>", None), ({"content": "<end>"}, None), (None, {"eos_token_id": END}), (None, {"eos_token_id": [END, 1]})],
)
def test_the_end_of_a_text_is_found(tmp_path: Path, end: object, config: dict | None) -> None:
    tokenizer = get_tokenizer(str(written(tmp_path, end=end, config=config)))
    assert (tokenizer.end_of_text, tokenizer.vocab_size) == (END, END + 1)
    assert tokenizer.decode([1, 2, END, 3]) == "one two"
    assert tokenizer.n_bytes(np.array([1, 2])) == len("one two")


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not say which token ends a text"):
        get_tokenizer(str(written(tmp_path, end=None)))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        get_tokenizer(str(tmp_path / "damaged" / "tokenizer.json"))
    small = GPT2Config(1, 8, 1, tokenizer=str(written(tmp_path)), vocab_size=50_000, seq_len=4)
    with pytest.raises(DataError, match="vocab_size=50000 does not hold the 100001 tokens"):
        open_text("alice", config=small, split="train")
