"""Sources of text: the built-in book, files and folders, Hugging Face data sets, and the splits that they have.

A source that has no validation split of its own gives up a fixed part for it: the last chapter of the book, the
last tenth of a text, every twentieth of many documents.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from paralab.data import text_files
from paralab.data.assets import SHA256, read_asset
from paralab.data.files import TEXT_ENDINGS, states_of, unchanged
from paralab.data.splitting import HELD_OUT_DOCUMENT, Pieces, closed, cut, held_out, part
from paralab.data.text_files import Document, check_column, first_line, strings
from paralab.errors import DataError

TEXT_COLUMN = "text"  # where none is named


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
    states = states_of([path] if path.is_file() else [file for found in splits.values() for file in found])
    sha256 = text_files.checksum(path) if path.is_file() else _sha256_of_all(splits)

    def read() -> Pieces:
        if one_text:
            (document,) = text_files.documents(path, column=column)
            return ((piece, False) for piece in cut(part(document, split)))
        found = (x for file in files for x in text_files.documents(file, column=column))
        return chain.from_iterable(map(closed, found)) if "validation" in splits else held_out(found, split)

    def pieces() -> Pieces:
        with unchanged(states):
            yield from read()

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
