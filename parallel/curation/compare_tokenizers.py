"""Tokenizers compared on a text that they were not trained on, and which tensor ranks divide their vocabularies."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from paralab.console.outputs import write_whole
from paralab.curation.train_tokenizer import save, train
from paralab.data.files import sha256_of
from paralab.data.text import TextOptions, open_source
from paralab.data.tokenizer import Tokenizer, get_tokenizer
from paralab.data.tokenizer_file import NAME
from paralab.errors import DataError

_MADE = "made.json"  # beside a tokenizer: what it was trained on, and the checksum of its file


@dataclass(frozen=True)
class Corpus:
    """Texts by the names that `--data` has of them. column: holds the text, where there are columns."""

    names: tuple[str, ...]
    column: str

    def pieces(self, split: str) -> Iterator[str]:
        """Yield the text of a split, "train" or "validation", a piece at a time. Raises: DataError."""
        return chain.from_iterable((text for text, _ in source.pieces()) for source in self._sources(split))

    @property
    def identity(self) -> str:
        """What changes with the content. Raises: DataError."""
        return hashlib.sha256(json.dumps([x.identity for x in self._sources("train")]).encode()).hexdigest()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Read one content in this context. Raises: DataError where it is another at the end."""
        began = self.identity
        yield
        if self.identity != began:
            raise DataError(f"{', '.join(self.names)} changed meanwhile: start again when nothing writes to it")

    def _sources(self, split: str) -> list:
        return [open_source(name, split=split, options=TextOptions(column=self.column)) for name in self.names]


@dataclass(frozen=True)
class Compared:
    """What a tokenizer makes of a text. used: tokens of its vocabulary that occur. exact: it gives the text back."""

    name: str
    vocabulary: int
    used: int
    n_tokens: int
    n_bytes: int
    exact: bool

    @property
    def tokens_per_byte(self) -> float:
        return self.n_tokens / self.n_bytes


@dataclass(frozen=True)
class Training:
    """A tokenizer to be trained, as something that travels by pickle. folder: where it is written."""

    kind: str
    corpus: Corpus
    vocabulary: int
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / NAME

    def is_done(self) -> bool:
        """Tell whether the folder has it already: of the same text, kind and size, and as it was written."""
        try:
            made = json.loads((self.folder / _MADE).read_text())
        except (OSError, ValueError, RecursionError):
            return False
        return self.file.is_file() and made == self._made()

    def _made(self) -> dict[str, object]:
        what = {"kind": self.kind, "text": self.corpus.identity, "vocabulary": self.vocabulary}
        return {**what, "sha256": sha256_of(self.file)}


def do(training: Training) -> None:
    """Train a tokenizer and write it, what it was made of last. Raises: DataError for a text that cannot be read."""
    with training.corpus.unchanged():
        trained = train(training.kind, training.corpus.pieces("train"), vocabulary=training.vocabulary)
    save(trained, training.folder)
    write_whole(training.folder / _MADE, json.dumps(training._made()).encode())


def compare(name: str, tokenizer: Tokenizer, texts: Iterable[str]) -> Compared:
    """Encode a text, and decode it again, a piece at a time."""
    seen = np.zeros(tokenizer.vocab_size, bool)
    n_tokens = n_bytes = 0
    exact = True
    for text in texts:
        (ids,) = tokenizer.encode([text])
        seen[ids] = True
        n_tokens, n_bytes = n_tokens + len(ids), n_bytes + len(text.encode())
        exact = exact and tokenizer.decode(ids.tolist()) == text
    return Compared(name, tokenizer.vocab_size, int(seen.sum()), n_tokens, n_bytes, exact)


def compare_all(trainings: Sequence[Training], built_in: Sequence[str], corpus: Corpus) -> Iterator[Compared]:
    """Yield each tokenizer on the validation split of a corpus. Raises: DataError."""
    files = {training.kind: str(training.file) for training in trainings}
    for name, path in {**{name: name for name in built_in}, **files}.items():
        yield compare(name, get_tokenizer(path), corpus.pieces("validation"))


def padding(vocabulary: int, degree: int) -> int:
    """Return how many rows a vocabulary lacks to divide over so many tensor ranks; 0 where it divides."""
    return -vocabulary % degree
