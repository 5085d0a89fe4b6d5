"""Token ids of a text, tokenized once and memory-mapped from then on."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from parallel.data.files import cache_folder
from parallel.data.sources import Source
from parallel.data.tokenizer import TOKEN_DTYPE, Tokenizer
from parallel.errors import DataError

_FORMAT = 1  # part of the key: raise it when the same text would be written differently
_GROUP = 64  # texts encoded together


@dataclass(frozen=True)
class TokenCounts:
    """What one token file holds. n_bytes and sha256 are those of the text in UTF-8."""

    n_tokens: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenFile:
    """Token ids on disk: little-endian uint16, no header."""

    path: Path
    counts: TokenCounts

    def tokens(self) -> np.ndarray:
        """Map the ids, (n_tokens,). Mapped anew at each call: cheap, and a loader process needs the path only."""
        return np.memmap(self.path, dtype="<u2", mode="r")


def cached_tokens(source: Source, *, tokenizer: Tokenizer, max_tokens: int | None = None) -> TokenFile:
    """Return the tokens of a source, from the cache when they are there.

    Processes that ask at the same time wait for the first, which writes under another name and renames.
    max_tokens: stop reading at the first document (or piece) that reaches it.

    Raises: DataError when the source or the cache folder is not usable.
    """
    key = json.dumps([_FORMAT, source.identity, tokenizer.name, max_tokens])
    stem = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
    path, counts_path = stem.with_suffix(".bin"), stem.with_suffix(".json")
    with FileLock(stem.with_suffix(".lock")):
        counts = _read_counts(counts_path, path)
        if counts is None:
            try:
                counts = _tokenize(source, path, tokenizer=tokenizer, max_tokens=max_tokens)
                _replace(counts_path, json.dumps(asdict(counts)).encode())  # last: it says that the tokens are whole
            except OSError as error:
                raise DataError(
                    f"tokens of {source.name} cannot be written to {path.parent} ({error.strerror}): "
                    f"make room there, or set PARALAB_CACHE to another folder"
                ) from error
    return TokenFile(path, counts)


def _read_counts(counts_path: Path, path: Path) -> TokenCounts | None:
    """Return the counts of a finished token file, or None when there is none or it is not whole."""
    try:
        counts = TokenCounts(**json.loads(counts_path.read_text()))
        whole = path.stat().st_size == counts.n_tokens * np.dtype(TOKEN_DTYPE).itemsize
    except (OSError, ValueError, TypeError):
        return None
    return counts if whole else None


def _tokenize(source: Source, path: Path, *, tokenizer: Tokenizer, max_tokens: int | None) -> TokenCounts:
    temporary = path.with_suffix(".bin.tmp")  # ours alone: the caller holds the lock
    try:
        with temporary.open("wb") as file:
            counts = _write(source, file, tokenizer=tokenizer, max_tokens=max_tokens)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return counts


def _write(source: Source, file: BinaryIO, *, tokenizer: Tokenizer, max_tokens: int | None) -> TokenCounts:
    n_tokens = n_bytes = 0
    digest = hashlib.sha256()
    for text, ids in _encoded(source, tokenizer):
        content = text.encode()
        digest.update(content)
        if source.documents:
            ids = np.append(ids, TOKEN_DTYPE(tokenizer.end_of_text))
        file.write(ids.astype("<u2").tobytes())
        n_tokens, n_bytes = n_tokens + len(ids), n_bytes + len(content)
        if max_tokens is not None and n_tokens >= max_tokens:
            break
    return TokenCounts(n_tokens, n_bytes, digest.hexdigest())


def _encoded(source: Source, tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    pieces = source.pieces()
    while texts := list(islice(pieces, _GROUP)):
        yield from zip(texts, tokenizer.encode(texts), strict=True)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
