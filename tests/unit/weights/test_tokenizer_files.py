"""The tokenizer that is written beside exported weights is the one that the model was trained with."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from paralab.data.tokenizer import get_tokenizer
from paralab.models.vocabulary import end_of_text
from paralab.weights import tokenizer_files

TEXTS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank",
    "  two  spaces,\ttabs\r\n\nand don't, I'll, 1234567 numbers!!",
    "naïve café — 漢字 🙂 Ωμέγα",
    "<|endoftext",
]


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_transformers_reads_and_encodes_as_we_do(name: str, tmp_path: Path) -> None:
    tokenizer_files.save(name, tmp_path, longest=16)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), get_tokenizer(name)
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs.decode(ids.tolist()) == text
    assert theirs.eos_token_id == ours.end_of_text and len(theirs) == ours.vocab_size
    assert theirs.model_max_length == 16
    assert [end_of_text(name, rows) for rows in (60_000, 200)] == [ours.end_of_text, None]
