"""What is counted, compared and kept or dropped: the documents, paragraphs or lines of texts, read one at a time."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paralab.data import text_files
from paralab.data.assets import FOLDER, read_asset
from paralab.data.files import TEXT_ENDINGS, State, path_of, states_of
from paralab.errors import DataError

By = Literal["document", "paragraph", "line"]
LONGEST_CHARS = 1 << 20  # of a paragraph or line, which is cut there: memory does not grow with the text
_MARKS = {"paragraph": re.compile(r"\n[ \t]*\n"), "line": re.compile(r"\n")}


@dataclass(frozen=True)
class Unit:
    """One part of a text, or the plain file that is all of it. file, number: which file, and which part of it."""

    file: int
    number: int
    text: str | Path

    def blocks(self) -> Iterator[str]:
        """Yield its text, a part at a time. Raises: DataError when its file cannot be read."""
        if isinstance(self.text, str):
            return iter((self.text,))
        (document,) = text_files.documents(self.text, column="")
        return document.blocks()


@dataclass(frozen=True)
class Texts:
    """Files that are read in this order, parted into units. column: holds the text, where there are columns.

    states: of the files when they were found.
    """

    files: tuple[Path, ...]
    by: By
    column: str
    states: Mapping[Path, State]

    @classmethod
    def of(cls, names: Sequence[str], *, by: By | None, column: str) -> "Texts":
        """Find the files of names; a plain text is parted into paragraphs unless told otherwise, a table into rows.

        names: `alice`, files, and folders, whose texts are all read. Raises: DataError.
        """
        files = tuple(dict.fromkeys(file for name in names for file in _files_of(name)))
        plain, table = (next((x for x in files if text_files.is_plain(x) == kind), None) for kind in (True, False))
        if plain and table:
            raise DataError(f"plain texts ({plain}) beside tables ({table}): give one of both alone")
        if table and by is not None:
            raise DataError(f"--by {by} with {table}, whose rows are the documents: leave it out")
        return cls(files, by or ("paragraph" if plain else "document"), column, states_of(files))

    @property
    def plain(self) -> bool:
        return text_files.is_plain(self.files[0])

    @property
    def noun(self) -> str:
        return f"{self.by}s"

    @property
    def n_chars(self) -> int | None:
        """Characters of all files, of tables with their marks; None where one of them is no text (Parquet)."""
        if any(".parquet" in file.suffixes for file in self.files):
            return None
        return sum(text_files.content_of(file).n_chars for file in self.files)

    def units(self) -> Iterator[Unit]:
        """Yield all units that are not blank. Raises: DataError for what cannot be read."""
        for i, file in enumerate(self.files):
            yield from (Unit(i, number, text) for number, text in enumerate(self._texts(file)))

    def _texts(self, file: Path) -> Iterator[str | Path]:
        if self.plain and self.by == "document":
            if text_files.content_of(file).n_chars:
                yield file
            return
        for document in text_files.documents(file, column=self.column):
            blocks = document.blocks()
            yield from filter(str.strip, parted(blocks, _MARKS[self.by]) if self.plain else ["".join(blocks)])


def parted(blocks: Iterable[str], mark: re.Pattern[str]) -> Iterator[str]:
    """Yield what stands between marks, without line breaks around it, whatever the blocks are."""
    pending = ""
    for block in blocks:
        *whole, pending = mark.split(pending + block)
        yield from (text.strip("\n") for text in whole)
        while len(pending) > LONGEST_CHARS:
            yield pending[:LONGEST_CHARS]
            pending = pending[LONGEST_CHARS:]
    yield pending.strip("\n")


def _files_of(name: str) -> list[Path]:
    if name == "alice":
        read_asset("alice.txt")  # which compares it with its checksum
        return [FOLDER / "alice.txt"]
    path = path_of(name)
    if path is not None and path.is_dir():
        splits, unused = text_files.files_of(path)
        return sorted({*unused, *(file for files in splits.values() for file in files)})
    if path is None or not text_files.is_text(path):
        raise DataError(f"{name} is not a text that can be read: use alice, a folder, or {', '.join(TEXT_ENDINGS)}")
    return [path]
