"""Text to token ids and back. The GPT-2 encoding is built from the ranks in the package: no network."""

import base64
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

from paralab.data.assets import read_asset
from paralab.errors import DataError, did_you_mean

END_OF_TEXT = "<|endoftext|>"
TOKEN_DTYPE = np.uint16  # holds the ids of both built-in tokenizers


@cache
def encoding() -> tiktoken.Encoding:
    """Return GPT-2's byte-pair encoding, `<|endoftext|>` included as special token 50256.

    Raises: DataError when the built-in ranks are missing or damaged.
    """
    lines = (line.split() for line in read_asset("gpt2.tiktoken").splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return tiktoken.Encoding(
        name="gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
        explicit_n_vocab=len(ranks) + 1,
    )


class Tokenizer(Protocol):
    """`vocab_size` ids below which all are; one of them, `end_of_text`, closes a document and stands for no bytes.

    dtype: of its ids, an unsigned integer that holds all of them.
    """

    name: str
    vocab_size: int
    end_of_text: int
    dtype: type[np.unsignedinteger]

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids (n_tokens,) of each text; in a built-in one, what looks like a special token stays text."""
        ...

    def n_bytes(self, ids: np.ndarray) -> int:
        """Return how many bytes of UTF-8 the ids of a text stand for."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids up to the first end of text; broken UTF-8 becomes U+FFFD."""
        ...


class GPT2Tokenizer:
    """Byte pairs of GPT-2 (Radford et al. 2019, section 2.2)."""

    name, vocab_size, end_of_text, dtype = "gpt2", 50_257, 50_256, TOKEN_DTYPE

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [encoding().encode_to_numpy(x, disallowed_special=()).astype(TOKEN_DTYPE) for x in texts]

    def n_bytes(self, ids: np.ndarray) -> int:
        return len(encoding().decode_bytes(ids.tolist()))

    def decode(self, ids: Iterable[int]) -> str:
        return encoding().decode(_until(self.end_of_text, ids))


class ByteTokenizer:
    """Each byte of the UTF-8 form is a token: for models too small for a big vocabulary."""

    name, vocab_size, end_of_text, dtype = "bytes", 257, 256, TOKEN_DTYPE

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(x.encode(), dtype=np.uint8).astype(TOKEN_DTYPE) for x in texts]

    def n_bytes(self, ids: np.ndarray) -> int:
        return len(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(_until(self.end_of_text, ids)).decode(errors="replace")


def _until(end: int, ids: Iterable[int]) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(end)] if end in ids else ids


_TOKENIZERS: dict[str, Tokenizer] = {t.name: t for t in (GPT2Tokenizer(), ByteTokenizer())}
BUILT_IN = tuple(_TOKENIZERS)


def get_tokenizer(name: str) -> Tokenizer:
    """Return the built-in tokenizer of that name, or that of a file as `tokenizer.json`, by its path.

    Raises: DataError when there is none, or it cannot be used.
    """
    if Path(name).suffix == ".json":
        from paralab.data.tokenizer_file import open_file

        return open_file(Path(name))
    if name not in _TOKENIZERS:
        hint = did_you_mean(name, _TOKENIZERS)
        use = f"use one of {', '.join(_TOKENIZERS)}, or the path of a tokenizer.json"
        raise DataError(f"tokenizer {name!r} is unknown{hint}: {use}")
    return _TOKENIZERS[name]
