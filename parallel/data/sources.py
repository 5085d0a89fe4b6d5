"""Sources of text (the built-in book, files and folders, Hugging Face data sets) and how they are split.

A source that has no validation split of its own gives up a fixed part for it: the last chapter of the book, the
last tenth of a text, every twentieth of many documents.
"""

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from paralab.data import text_files
from paralab.data.assets import SHA256, read_asset
from paralab.data.files import TEXT_ENDINGS
from paralab.data.text_files import Document, check_column, first_line, strings
from paralab.errors import DataError

TEXT_COLUMN = "text"  # where none is named
HELD_OUT_TENTH = 10  # of a text: one part in ten, at the end
HELD_OUT_DOCUMENT = 20  # of so many documents or more: one in twenty
_FAR_CHARS = 1 << 20  # how far from the last tenth a line break or blank is looked for, at most
_PIECE_CHARS = 1 << 16
_LONGEST_PIECE_CHARS = 1 << 20
# Where GPT-2's pattern always ends a word, so that pieces cut there have the tokens of the whole text: before a blank,
# and between a letter or digit and a punctuation mark. Both as far as all versions of Unicode agree on what is which.
_MARKS = r"[!-/:-@\[-`{-~\u3001-\u3003\uff01-\uff0f]"
_LAST_CUT = re.compile(rf".*(?:(?<=\S)(?=[ \t\n\u3000])|(?<=[^\W_])(?={_MARKS}))", re.DOTALL)

Pieces = Iterator[tuple[str, bool]]  # text, and whether a document ends with it


@dataclass(frozen=True)
class Source:
    """One split of a text.

    identity: changes when the content does, so that cached tokens are never those of another text.
    sha256: of the content of all splits, or None when it is known only once it was read.
    how: which part of the text it is, for people; empty where that is all there is to know.
    """

    name: str
    identity: str
    sha256: str | None
    how: str
    pieces: Callable[[], Pieces]


def alice(split: str) -> Source:
    """Open the built-in book. Chapter XII, the last one, is the validation split."""
    sha256 = SHA256["alice.txt"]

    def pieces() -> Pieces:
        text = read_asset("alice.txt").decode()
        chapter = text.rindex("CHAPTER XII.")
        yield text[:chapter] if split == "train" else text[chapter:], False

    return Source("alice", f"{sha256} {split}", sha256, "the last chapter" if split == "validation" else "", pieces)


def local(path: Path, *, split: str, column: str) -> Source:
    """Open a text file or a folder of them.

    A plain text is parted at nine tenths. Folders and tables are sets of documents, each closed by the end of text.
    Raises: DataError.
    """
    if path.is_dir():
        splits, unused = text_files.files_of(path)
    elif path.is_file() and text_files.is_text(path):
        splits, unused = {"train": [path]}, []
    else:
        raise DataError(f"{path} is not a text file that can be read: use {_either(TEXT_ENDINGS)} (or with .gz)")
    files = splits.get(split, splits["train"])
    plain = text_files.is_plain(files[0])
    if plain:
        check_no_column(column, name=str(path))
    one_text = plain and path.is_file()
    sha256 = text_files.checksum(path) if path.is_file() else _sha256_of_all(splits)

    def pieces() -> Pieces:
        if one_text:
            (document,) = text_files.documents(path, column=column)
            return ((piece, False) for piece in cut(part(document, split)))
        found = (x for file in files for x in text_files.documents(file, column=column))
        return chain.from_iterable(map(closed, found)) if "validation" in splits else held_out(found, split)

    if "validation" in splits or (split == "train" and path.is_dir()):
        how = _listed(files) + (f"; not read: {_listed(unused)}" if unused and split == "train" else "")
    elif split == "train":
        how = ""
    else:
        many = f"every {HELD_OUT_DOCUMENT}th document, of fewer the last tenth of each"
        how = "the last tenth" if one_text else many
    return Source(str(path), json.dumps([sha256, split, column, one_text]), sha256, how, pieces)


def _listed(files: list[Path]) -> str:
    return files[0].name if len(files) == 1 else f"{len(files):,} files from {files[0].name} to {files[-1].name}"


def _sha256_of_all(splits: Mapping[str, Iterable[Path]]) -> str:
    """Return a checksum of the contents of files in their order, whatever their names."""
    contents = {split: [text_files.checksum(file) for file in files] for split, files in splits.items()}
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


def check_no_column(column: str, *, name: str) -> None:
    """Raise DataError where a column was requested of a text that has none."""
    if column != TEXT_COLUMN:
        raise DataError(f"--text-column {column} with {name}, which has no columns: leave it out")


def is_hugging_face(folder: Path) -> bool:
    """Tell a folder that `datasets` wrote (`save_to_disk`), or whose card (README.md) says which files are what."""
    saved = any((state.parent / "dataset_info.json").exists() for state in folder.glob("**/state.json"))
    card = folder / "README.md"
    if saved or not card.is_file():
        return saved
    lines = iter(card.read_text(errors="replace").splitlines())
    return next(lines, "") == "---" and any(line.startswith("configs:") for line in takewhile("---".__ne__, lines))


def hugging_face(name: str, *, split: str, column: str, streaming: bool) -> Source:
    """Open a text set through `datasets`: `NAME[:CONFIG]` on the hub or in its cache, or a local folder.

    streaming: read without storing the raw set.
    Raises: DataError when it cannot be found or reached.
    """
    folder = Path(name)
    sha256 = None
    if folder.is_dir() and list(folder.glob("**/state.json")):
        if streaming:
            raise DataError(f"{name} was written by save_to_disk, which is read in place: leave --streaming out")
        identity = sha256 = _sha256_of_all({"": sorted(folder.rglob("*.arrow"))})
        load = partial(_from_disk, folder)
    else:
        builder = _builder(name)
        identity = f"{builder.hash} {builder.config_id}"
        load = partial(_splits_of, builder, streaming=streaming)

    def pieces() -> Pieces:
        with _hugging_face_errors(name):
            splits = load()
            own_split = split if split in splits else "train"
            if own_split not in splits:
                raise DataError(f"{name} has the splits {', '.join(splits)}: a split named train is needed")
            rows = splits[own_split]
            check_column(column, rows.column_names or (), name=name)
            values = strings((row[column] for row in rows), name=name, column=column)
            documents = map(Document.of, values)
            own = "validation" in splits
            yield from chain.from_iterable(map(closed, documents)) if own else held_out(documents, split)

    return Source(name, json.dumps([name, identity, split, column]), sha256, "", pieces)


def _from_disk(folder: Path) -> Mapping[str, Any]:
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


def _builder(name: str) -> Any:
    path, _, config = (name, "", "") if Path(name).is_dir() else name.partition(":")
    if not Path(path).exists() and _has_no_way_to_the_hub():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what was fetched before is read at once, and nothing retried
    import datasets

    with _hugging_face_errors(name):
        return datasets.load_dataset_builder(path, config or None)


def _has_no_way_to_the_hub() -> bool:
    """Return whether the host of the Hugging Face hub has no address on this machine, and no proxy knows one."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if host is None or getproxies():
        return False
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return True
    return False


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
        why: BaseException = error
        while why.__cause__ is not None:  # "an error occurred while generating the dataset" says nothing
            why = why.__cause__
        raise DataError(
            f"data {name!r} is no built-in set and Hugging Face datasets cannot read it ({type(why).__name__}: "
            f"{first_line(why)}): check name and network, or download it first and set HF_HUB_OFFLINE=1, "
            f"or use --data alice or --data file:PATH"
        ) from error


def held_out(documents: Iterator[Document], split: str) -> Pieces:
    """Give every twentieth document to validation; of fewer than twenty the last tenth of each."""
    first = list(islice(documents, HELD_OUT_DOCUMENT))
    if len(first) < HELD_OUT_DOCUMENT:
        return (piece for document in first for piece in _ended(cut(part(document, split))))
    validation = split == "validation"
    numbered = enumerate(chain(first, documents), start=1)
    return (x for i, doc in numbered if (i % HELD_OUT_DOCUMENT == 0) == validation for x in closed(doc))


def closed(document: Document) -> Pieces:
    """Yield the pieces of a whole document, the last of them as its end."""
    return _ended(cut(document.blocks()))


def _ended(pieces: Iterator[str]) -> Pieces:
    last = ""
    for piece in pieces:
        if last:
            yield last, False
        last = piece
    yield last, True


def part(document: Document, split: str) -> Iterator[str]:
    """Yield the first nine tenths of a text, or the rest: from a line break on, or a blank, where one is near."""
    point = _point(document)
    start, stop = (0, point) if split == "train" else (point, document.n_chars)
    return _between(document, start, stop)


def _between(document: Document, start: int, stop: int) -> Iterator[str]:
    position = 0
    for block in document.blocks():
        if wanted := block[max(0, start - position) : max(0, stop - position)]:
            yield wanted
        position += len(block)
        if position >= stop:
            return


def _point(document: Document) -> int:
    """Return where the last tenth begins. What is looked for a break is less than half of it."""
    point = document.n_chars - document.n_chars // HELD_OUT_TENTH
    near = min(_FAR_CHARS, document.n_chars // (2 * HELD_OUT_TENTH))
    text = "".join(_between(document, point, point + near))
    if (line := text.find("\n")) >= 0:
        return point + line + 1
    return point + max(0, text.find(" "))  # a word of GPT-2's begins with the blank before it


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Regroup a text into pieces that have the tokens of the whole, together.

    They depend on the text alone, not on its blocks. Where nothing but letters goes on for a million characters it is
    cut all the same, so that memory does not grow with the text; the tokens beside such a cut may be other ones.
    """
    pending = ""
    for block in _of_equal_size(blocks):
        seen = max(0, len(pending) - 1)
        pending += block
        match = _LAST_CUT.match(pending, seen)
        end = match.end() if match else len(pending) if len(pending) >= _LONGEST_PIECE_CHARS else 0
        if end:
            yield pending[:end]
            pending = pending[end:]
    if pending:
        yield pending


def _of_equal_size(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        rest += block
        full = len(rest) - len(rest) % _PIECE_CHARS
        for start in range(0, full, _PIECE_CHARS):
            yield rest[start : start + _PIECE_CHARS]
        rest = rest[full:]
    if rest:
        yield rest
