"""Where text comes from: the built-in book, a text or Parquet file, a Hugging Face set.

A source that has no validation split of its own gives up a fixed part for it: the last chapter of the book, the
last tenth of a text file, every twentieth document of a set of documents.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parallel.data.assets import SHA256, read_asset
from parallel.data.files import sha256_of
from parallel.errors import DataError

HELD_OUT_TENTH = 10  # of a text file: one part in ten, at the end
HELD_OUT_DOCUMENT = 20  # of a set of documents: one in twenty
_PIECE_BYTES = 1 << 16
# GPT-2's pattern always ends a word between a visible character and a newline, so pieces cut there have the
# tokens of the whole text.
_CUT = re.compile(r"(?<=\S)\n")


@dataclass(frozen=True)
class Source:
    """One split of a text.

    identity: changes when the content does, so that cached tokens are never those of another text.
    sha256: of the source file, or None when there is no single one.
    documents: each piece is a document, to be closed by the end-of-text token.
    """

    name: str
    identity: str
    sha256: str | None
    documents: bool
    pieces: Callable[[], Iterator[str]]


def alice(split: str) -> Source:
    """Open the built-in book. Chapter XII, the last one, is the validation split."""
    sha256 = SHA256["alice.txt"]

    def pieces() -> Iterator[str]:
        text = read_asset("alice.txt").decode()
        chapter = text.rindex("CHAPTER XII.")
        yield text[:chapter] if split == "train" else text[chapter:]

    return Source("alice", f"{sha256} {split}", sha256, False, pieces)


def text_file(path: Path, *, split: str) -> Source:
    """Open a UTF-8 text file, read in pieces; its last tenth, from a line break on, is the validation split."""
    sha256 = sha256_of(path)

    def pieces() -> Iterator[str]:
        size = path.stat().st_size
        end_of_train = _next_line(path, offset=size - size // HELD_OUT_TENTH)
        try:
            yield from _cut_pieces(path, *((0, end_of_train) if split == "train" else (end_of_train, size)))
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 text ({error.reason} {error.object[error.start]:#x}): "
                f"convert it with `iconv -t utf-8`"
            ) from error

    return Source(str(path), f"{sha256} {split}", sha256, False, pieces)


def _next_line(path: Path, *, offset: int) -> int:
    """Return the offset of the first line that starts after `offset`, or the size of the file."""
    with path.open("rb") as file:
        file.seek(offset)
        file.readline()
        return file.tell()


def _cut_pieces(path: Path, start: int, stop: int) -> Iterator[str]:
    """Yield the text from byte start to byte stop in pieces of about _PIECE_BYTES."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = ""
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(_PIECE_BYTES, stop - file.tell())):
            seen = len(pending)
            pending += decoder.decode(block)
            cut = max((match.start() for match in _CUT.finditer(pending, seen)), default=0)
            if cut:
                yield pending[:cut]
                pending = pending[cut:]
    pending += decoder.decode(b"", final=True)
    if pending:
        yield pending


def parquet_file(path: Path, *, split: str, column: str) -> Source:
    """Open a Parquet file with one document a row in `column`."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file ({_first_line(error)}): check the file") from error
    _check_column(column, file.schema_arrow.names, name=str(path))
    sha256 = sha256_of(path)

    def pieces() -> Iterator[str]:
        values = (row for rows in file.iter_batches(columns=[column]) for row in rows.column(0).to_pylist())
        return _held_out(_strings(values, name=str(path), column=column), split)

    return Source(str(path), f"{sha256} {split} {column}", sha256, True, pieces)


def hugging_face(name: str, *, split: str, column: str, streaming: bool) -> Source:
    """Open a text set through `datasets`: `NAME[:CONFIG]` on the hub or in its cache, or a local folder.

    streaming: read without storing the raw set.
    Raises: DataError when it cannot be found or reached.
    """
    folder = Path(name)
    if folder.is_dir() and (states := sorted(folder.rglob("state.json"))):  # written by Dataset.save_to_disk
        if streaming:
            raise DataError(f"{name} was written by save_to_disk, which is read in place: leave --streaming out")
        identity = hashlib.sha256(b"".join(state.read_bytes() for state in states)).hexdigest()
        load = partial(_from_disk, folder)
    else:
        builder = _builder(name)
        identity = f"{builder.hash} {builder.config_id}"
        load = partial(_splits_of, builder, streaming=streaming)

    def pieces() -> Iterator[str]:
        with _hugging_face_errors(name):
            splits = load()
            own_split = split if split in splits else "train"
            if own_split not in splits:
                raise DataError(f"{name} has the splits {', '.join(splits)}: a split named train is needed")
            rows = splits[own_split]
            _check_column(column, rows.column_names or (), name=name)
            values = _strings((row[column] for row in rows), name=name, column=column)
            yield from values if "validation" in splits else _held_out(values, split)

    return Source(name, json.dumps([name, identity, split, column]), None, True, pieces)


def _from_disk(folder: Path) -> Mapping[str, Any]:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _builder(name: str) -> Any:
    import datasets

    path, _, config = (name, "", "") if Path(name).is_dir() else name.partition(":")
    with _hugging_face_errors(name):
        return datasets.load_dataset_builder(path, config or None)


def _splits_of(builder: Any, *, streaming: bool) -> Mapping[str, Any]:
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare()
    return builder.as_dataset()


@contextmanager
def _hugging_face_errors(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # hub, network, file and builder errors have no base in common
    except Exception as error:
        raise DataError(
            f"data {name!r} is no built-in set and Hugging Face datasets cannot read it ({type(error).__name__}: "
            f"{_first_line(error)}): check name and network, or download it first and set HF_HUB_OFFLINE=1, "
            f"or use --data alice or --data file:PATH (.txt, .parquet)"
        ) from error


def _held_out(documents: Iterator[str], split: str) -> Iterator[str]:
    validation = split == "validation"
    return (x for i, x in enumerate(documents, start=1) if (i % HELD_OUT_DOCUMENT == 0) == validation)


def _strings(values: Iterable[Any], *, name: str, column: str) -> Iterator[str]:
    for value in values:
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(
                f"column {column!r} of {name} holds {type(value).__name__}, text is needed: use --text-column"
            )
        yield value


def _check_column(column: str, columns: Iterable[str], *, name: str) -> None:
    if columns and column not in columns:
        raise DataError(f"{name} has no column {column!r}: use --text-column with one of {', '.join(columns)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
