"""What models of text have in common: their encoding, the rows that a vocabulary is padded to, logits at a time."""

from typing import Literal

Encoding = Literal["gpt2", "bytes"]

VOCAB_MULTIPLE = 64
CHUNK_BYTES = 256 << 20  # of logits at a time; benchmarks/NOTES.md says what other sizes gave


def padded(vocab_size: int) -> int:
    """Return the rows of an embedding: the vocabulary, rounded up to a multiple of `VOCAB_MULTIPLE`."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def tokenizer_of(vocab_size: int) -> Encoding:
    """Return the encoding that texts are read with: 257 rows are bytes, more of them GPT-2's, padded or not."""
    return "bytes" if vocab_size == 257 else "gpt2"


def end_of_text(encoding: str, vocab_size: int) -> int | None:
    """Return the token that ends a text, the last of a built-in encoding.

    None in a vocabulary too small for it, and of a tokenizer in a file, which says so itself.
    """
    last = {"gpt2": 50_256, "bytes": 256}.get(encoding)
    return last if last is not None and last < vocab_size else None
