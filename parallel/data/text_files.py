"""Texts on disk: what a file or a folder holds, as documents.

A plain text is one document; of JSON, CSV and Parquet each row is one, its text in a column. Files are read as text:
line ends become those of Unix (also CR LF and a lone CR), a byte order mark says how the file is encoded and is no part
of it, and gzip is unpacked. So twins of a file that differ in these alone are the same text, with the same checksum.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import sys
import textwrap
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from paralab.console.inputs import LONGEST_FORM, check_has_end, other_form
from paralab.console.sheet import named_delimiter
from paralab.data.dataset import SPLIT_NAMES
from paralab.data.files import PLAIN_ENDINGS, TEXT_ENDINGS, cannot_be_read, ending, once_a_content, sha256_of
from paralab.errors import DataError

_BLOCK_CHARS = 1 << 16
_ROWS = 1024  # of a Parquet file in memory at a time
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_WITHOUT_ZEROS = "use a text in UTF-8, or take them out with `tr -d '\\0'`"
_BYTE_ORDER_MARKS = {  # the longer ones first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Document:
    """One text of n_chars characters. blocks: reads it from its start, a part at a time."""

    n_chars: int
    blocks: Callable[[], Iterator[str]]

    @classmethod
    def of(cls, text: str) -> "Document":
        return cls(len(text), lambda: iter((text,)))


@dataclass(frozen=True)
class Content:
    """What is read of a text file. sha256: of the text in UTF-8."""

    sha256: str
    n_chars: int


def is_plain(path: Path) -> bool:
    return ending(path) in PLAIN_ENDINGS


def is_text(path: Path) -> bool:
    """Tell whether the name is that of a text that can be read, plain or a table, packed or not."""
    return ending(path) in TEXT_ENDINGS and not path.name.lower().endswith(".parquet.gz")


def checksum(path: Path) -> str:
    """Return the sha256 of the text of a file, of Parquet and Arrow that of its bytes. Raises: DataError."""
    return content_of(path).sha256 if is_text(path) and ending(path) != ".parquet" else sha256_of(path)


@once_a_content
def content_of(path: Path) -> Content:
    """Read a text file through. Raises: DataError when it cannot be read, or is no text."""
    digest, n_chars = hashlib.sha256(), 0
    with _opened(path) as file:
        while block := file.read(_BLOCK_CHARS):
            if (zero := block.find("\0")) >= 0:
                at = f"after {n_chars + zero:,} characters"
                raise DataError(f"{path} is not text, it holds zero bytes ({at}): {_WITHOUT_ZEROS}")
            digest.update(block.encode())
            n_chars += len(block)
    return Content(digest.hexdigest(), n_chars)


def documents(path: Path, *, column: str) -> Iterator[Document]:
    """Yield the documents of a file. column: holds the text, where there are columns. Raises: DataError."""
    if is_plain(path):
        yield Document(content_of(path).n_chars, partial(_blocks, path))
    else:
        values = _ROWS_OF[ending(path)](path, column)
        yield from map(Document.of, strings(values, name=str(path), column=column))


def files_of(folder: Path) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the text files of a folder and its subfolders by split, in the order of their paths; and those of none.

    Hidden ones are left out. Splits are told by the name of a subfolder, or the beginning or end of that of a file
    (`train-00000-of-00002.parquet`, `wiki.valid.txt`), where there is one to train on and another to evaluate on:
    with a validation set, test is left out; without any of both, all files are for `train`.

    Raises: DataError where there is none, or plain texts lie beside tables.
    """
    files = sorted(filter(is_text, _files_in(folder)))
    if not files:
        raise DataError(f"{folder} has no text: it needs files that end in {', '.join(TEXT_ENDINGS)} (or with .gz)")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    held_out = found.get("validation") or found.get("test")
    splits = {"train": found["train"], "validation": held_out} if "train" in found and held_out else {"train": files}
    used = [file for split in splits.values() for file in split]
    plain, table = next(filter(is_plain, used), None), next((x for x in used if not is_plain(x)), None)
    if plain and table:
        raise DataError(f"{folder} has plain texts ({plain.name}) beside tables ({table.name}): give one of both alone")
    return splits, [file for file in files if file not in set(used)]


def _files_in(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yield the visible files at any depth. Links are followed, but for one that leads to a folder it lies in."""
    above |= {os.path.realpath(folder)}
    try:
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise cannot_be_read(folder, error) from error
    for path in visible:
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from _files_in(path, above)


_SPLIT_IN_STEM = re.compile(rf"(?:.*[-_. ])?({'|'.join(SPLIT_NAMES)})(?:[-_. ]?(?:data|set))?(?:[-_.]?\d[-_.\dof]*)?")


def _split_of(path: Path) -> str:
    """Return the split that a path names, or an empty string."""
    *folders, file = (part.lower() for part in path.parts)
    match = _SPLIT_IN_STEM.fullmatch(file.removesuffix(".gz").rpartition(".")[0])
    words = [*folders, match[1]] if match else folders
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def strings(values: Iterable[Any], *, name: str, column: str) -> Iterator[str]:
    """Yield the values that are there. Raises: DataError for one that is no text, or no Unicode."""
    for value in values:
        if value is None:
            continue
        if not isinstance(value, str):
            raise DataError(
                f"column {column!r} of {name} holds {type(value).__name__}, text is needed: use --text-column"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"column {column!r} of {name} holds half a character ({value[error.start]!r}): repair or remove the row"
            ) from error
        yield value


def check_column(column: str, columns: Iterable[str], *, name: str) -> None:
    """Raise DataError where a table lacks the column that holds the text, or has it twice."""
    columns = list(columns)
    if columns.count(column) > 1:
        raise DataError(f"{name} has the column {column!r} twice: rename one of them")
    if columns and column not in columns:
        listed = ", ".join(textwrap.shorten(str(known), 60, placeholder=" ...") for known in columns[:20])
        raise DataError(f"{name} has no column {column!r}: use --text-column with one of {listed}")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a file as text, packed or not. Raises: DataError, also for what goes wrong while it is read."""
    try:
        check_has_end(path)
        with path.open("rb") as raw:
            binary: Any = gzip.GzipFile(fileobj=raw) if raw.peek(2).startswith(_GZIP) else raw
            start = binary.peek(LONGEST_FORM)
            if what := other_form(start):
                raise DataError(f"{path} {what}")
            encoding = next((x for mark, x in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig")
            if encoding == "utf-8-sig":
                _check_no_zeros(start, path)
            yield io.TextIOWrapper(binary, encoding=encoding)
    except UnicodeDecodeError as error:
        _check_packed(path)
        raise DataError(_not_in_its_encoding(path, error)) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise cannot_be_read(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is damaged ({first_line(error)}): pack or download it again")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP


def _check_packed(path: Path) -> None:
    """Refuse a packed file that is damaged: it gives other bytes before its checksum is reached."""
    if not _is_packed(path):
        return
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error


def _not_in_its_encoding(path: Path, error: UnicodeDecodeError) -> str:
    encoding, byte = error.encoding.upper(), error.object[error.start]
    if encoding != "UTF-8":
        return f"{path} begins as {encoding} text and goes on otherwise ({error.reason}): save it again as UTF-8"
    try:
        error.object.decode("cp1252")
        guess = "WINDOWS-1252"
    except UnicodeDecodeError:
        guess = "ENCODING"
    return f"{path} is not UTF-8 text (byte {byte:#x}: {error.reason}): convert it, {_iconv(path, guess)}"


def _iconv(path: Path, encoding: str) -> str:
    source, target = shlex.quote(str(path)), path.with_name(f"{path.name.split('.')[0]}-utf8{ending(path)}")
    convert = f"iconv -f {encoding} -t UTF-8"
    command = f"zcat {source} | {convert}" if _is_packed(path) else f"{convert} {source}"
    return f"as in `{command} > {shlex.quote(str(target))}`"


def _check_no_zeros(start: bytes, path: Path) -> None:
    """Refuse what is no text, or UTF-16 that does not say so: every other byte of Latin letters is zero there."""
    if 0 not in start:
        return
    if start.startswith(_ZIP):
        raise DataError(f"{path} is a zip archive (as .docx and .xlsx are): unpack it, or save it as text in UTF-8")
    _check_packed(path)
    for first, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        half = start[first::2]
        if half.count(0) > 0.7 * len(half):
            raise DataError(f"{path} is {encoding} without a byte order mark: convert it, {_iconv(path, encoding)}")
    raise DataError(f"{path} is not text, it holds zero bytes: {_WITHOUT_ZEROS}")


def _blocks(path: Path) -> Iterator[str]:
    with _opened(path) as file:
        while block := file.read(_BLOCK_CHARS):
            yield block


def _json_rows(path: Path, column: str) -> Iterator[Any]:
    """Yield the column of JSON records: one a line, or a list of them."""
    with _opened(path) as file:
        lines = ((f"line {i}", line) for i, line in enumerate(file, start=1) if line.strip())
        where, line = next(lines, ("", ""))
        records: Iterable[tuple[str, Any]]
        if line.lstrip().startswith("["):
            listed = _parsed(line + file.read(), f"{path}", column)
            records = ((f"record {i}", record) for i, record in enumerate(listed, start=1))
        else:
            unread = chain([(where, line)], lines) if line else ()
            records = ((where, _parsed(line, f"{where} of {path}", column)) for where, line in unread)
        columns = None
        for where, record in records:
            if not isinstance(record, dict):
                needed = f"a record such as {{{json.dumps(column)}: ...}} is needed"
                raise DataError(f"{where} of {path} is {type(record).__name__}: {needed}")
            if columns is None:
                columns = list(record)
                check_column(column, columns, name=str(path))
            if column not in record:
                raise DataError(f"{where} of {path} has no {column!r}, as others have: add it (null for no text)")
            yield record[column]


def _parsed(text: str, what: str, column: str) -> Any:
    """Return what JSON says. Raises: DataError where it is no JSON, or a record has the column twice."""

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs) and [key for key, _ in pairs].count(column) > 1:
            raise DataError(f"{what} has {column!r} twice in one record: remove one of them")
        return values

    try:
        return json.loads(text, object_pairs_hook=record)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{what} is not whole JSON ({first_line(error)}): repair it, or write the file again (one record per "
            "line, or a list of records)"
        ) from error


def _csv_rows(path: Path, column: str) -> Iterator[Any]:
    """Yield the column of a table with a header, its fields parted by commas, semicolons or tabs.

    A first line `sep=;`, as spreadsheets write it, names what parts them.
    """
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the 128 KiB that csv expects
    with _opened(path) as file:
        header = file.readline()
        if named := named_delimiter(header):
            header = file.readline()
        parted_by = named or ("\t" if ending(path) == ".tsv" else max(",;\t", key=header.count))
        above = 1 if named else 0  # lines before the header
        reader = csv.reader(chain([header], file), delimiter=parted_by, strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            check_column(column, names, name=str(path))
            for row in filter(None, reader):
                if len(row) != len(names):
                    line = above + reader.line_num
                    raise DataError(f"line {line} of {path} has {len(row)} fields, the header {len(names)}: correct it")
                yield row[names.index(column)]
        except csv.Error as error:
            line = above + reader.line_num
            raise DataError(f"line {line} of {path} cannot be read ({error}): correct its quotes") from error


def _parquet_rows(path: Path, column: str) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            check_column(column, file.schema_arrow.names, name=str(path))
            for rows in file.iter_batches(batch_size=_ROWS, columns=[column]):
                yield from rows.column(0).to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"column {column!r} of {path} holds a string that is not UTF-8 ({error.reason}): write the file again with "
            "text in UTF-8"
        ) from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        with path.open("rb") as file:
            if what := other_form(file.read(LONGEST_FORM)):
                raise DataError(f"{path} {what}") from error
        why = first_line(error)
        raise DataError(f"{path} is not a readable Parquet file ({why}): make or download it again") from error


_ROWS_OF: Mapping[str, Callable[[Path, str], Iterator[Any]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
