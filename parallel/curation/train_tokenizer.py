"""Train a tokenizer on a text. All kinds begin from the 256 bytes, so that each gives any text back as it was."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from paralab.console.outputs import write_whole
from paralab.data.tokenizer import END_OF_TEXT
from paralab.data.tokenizer_file import NAME

LEAST = 257  # tokens: the bytes, and the one that ends a text
_LONGEST_WORD_CHARS = 1 << 20  # of a word that WordPiece takes apart instead of calling it unknown

Kind = tuple[Callable[[], Any], Callable[..., Any]]  # a model without tokens, and what trains it

KINDS: dict[str, Kind] = {
    "bpe": (models.BPE, trainers.BpeTrainer),  # Sennrich et al. 2016
    # Wu et al. 2016; the longest token that fits comes first (Song et al. 2021, arXiv:2012.15524). Without the mark of
    # tokens inside a word, which each of the 256 bytes would need once more.
    "wordpiece": (
        lambda: models.WordPiece(
            unk_token=END_OF_TEXT, max_input_chars_per_word=_LONGEST_WORD_CHARS, continuing_subword_prefix=""
        ),
        lambda **options: trainers.WordPieceTrainer(continuing_subword_prefix="", **options),
    ),
    "unigram": (models.Unigram, trainers.UnigramTrainer),  # Kudo 2018
}


def train(kind: str, texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Return a tokenizer of a kind in `KINDS`, trained on texts that are read once, a piece at a time.

    vocabulary: tokens requested, `LEAST` or more. Unigram may end with fewer, or with a few hundred where fewer were
    requested: it prunes tokens by their likelihood, and keeps all bytes.
    """
    assert vocabulary >= LEAST, vocabulary
    model, trainer = KINDS[kind]
    tokenizer = Tokenizer(model())
    # GPT-2's pattern parts words (Radford et al. 2019, section 2.2); a letter stands for each byte.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainer(
            vocab_size=vocabulary,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[END_OF_TEXT],
            show_progress=False,
        ),
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Write tokenizer.json, and beside it which token ends a text; return the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    says = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}
    write_whole(folder / "tokenizer_config.json", json.dumps(says, indent=2).encode())
    write_whole(folder / NAME, tokenizer.to_str().encode())
    return folder / NAME
