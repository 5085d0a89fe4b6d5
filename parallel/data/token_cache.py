"""Token ids of a text, tokenized once and memory-mapped from then on."""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from paralab.data.files import cache_folder, sha256_of
from paralab.data.sources import Source
from paralab.data.tokenizer import TOKEN_DTYPE, Tokenizer
from paralab.errors import DataError

_FORMAT = 2  # part of the key: raise it when the same text would be written differently
_END_OF_DOCUMENT = b"\xff"  # in a checksum: no byte of UTF-8


@dataclass(frozen=True)
class TokenCounts:
    """What one token file holds. n_bytes and sha256: of the text in UTF-8; tokens_sha256: of the token file."""

    n_tokens: int
    n_bytes: int
    sha256: str
    tokens_sha256: str


@dataclass(frozen=True)
class TokenFile:
    """Token ids on disk: little-endian, without a header, of the dtype of their tokenizer."""

    path: Path
    counts: TokenCounts
    dtype: type[np.unsignedinteger] = TOKEN_DTYPE

    def tokens(self) -> np.ndarray:
        """Map the ids, (n_tokens,). Mapped anew at each call: cheap, and a loader process needs the path only."""
        return np.memmap(self.path, dtype=_on_disk(self.dtype), mode="r")


def cached_tokens(source: Source, *, tokenizer: Tokenizer, max_tokens: int | None = None) -> TokenFile:
    """Return the tokens of a source, from the cache when they are there and as they were written.

    Processes that ask at the same time wait for the first, which writes under another name and renames.
    max_tokens: how many are read at most.

    Raises: DataError when the source or the cache folder is not usable.
    """
    key = json.dumps([_FORMAT, source.identity, tokenizer.name, max_tokens])
    stem = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
    path, counts_path = stem.with_suffix(".bin"), stem.with_suffix(".json")
    try:
        with FileLock(stem.with_suffix(".lock")):
            counts = _read_counts(counts_path, path)
            if counts is None:
                if path.exists():
                    print(f"paralab: cached tokens of {source.name} are damaged ({path}): made again", file=sys.stderr)
                counts = _tokenize(source, path, tokenizer=tokenizer, max_tokens=max_tokens)
                _replace(counts_path, _signed(counts))  # last: it says that the tokens are whole
    except OSError as error:  # of writing: those of reading are a DataError of the source
        raise DataError(
            f"tokens of {source.name} cannot be written to {path.parent} ({error.strerror}): "
            f"make room there, or set PARALAB_CACHE to another folder"
        ) from error
    return TokenFile(path, counts, tokenizer.dtype)


def _on_disk(dtype: type[np.unsignedinteger]) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _signed(counts: TokenCounts) -> bytes:
    content = json.dumps(asdict(counts))
    return json.dumps({"counts": content, "sha256": hashlib.sha256(content.encode()).hexdigest()}).encode()


def _read_counts(counts_path: Path, path: Path) -> TokenCounts | None:
    """Return the counts of a finished token file, or None when there is none or it is not as it was written."""
    try:
        written = counts_path.read_bytes()
        counts = TokenCounts(**json.loads(json.loads(written)["counts"]))
        return counts if written == _signed(counts) and sha256_of(path) == counts.tokens_sha256 else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, DataError):
        return None


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
    n_tokens, n_bytes, room = 0, 0, sys.maxsize if max_tokens is None else max_tokens
    digest, tokens_digest = hashlib.sha256(), hashlib.sha256()
    for text, ends_document in source.pieces():
        (ids,) = tokenizer.encode([text])
        content = text.encode()
        n_bytes += len(content) if len(ids) <= room else tokenizer.n_bytes(ids[:room])
        digest.update(content + _END_OF_DOCUMENT * ends_document)
        if ends_document:
            ids = np.append(ids, tokenizer.dtype(tokenizer.end_of_text))
        written = ids[:room].astype(_on_disk(tokenizer.dtype)).tobytes()
        file.write(written)
        tokens_digest.update(written)
        n_tokens, room = n_tokens + len(ids[:room]), room - len(ids[:room])
        if not room:
            break
    return TokenCounts(n_tokens, n_bytes, digest.hexdigest(), tokens_digest.hexdigest())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".json.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
