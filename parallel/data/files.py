"""Data files: their sha256, the cache folder, and how a name on the command line becomes a path."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from paralab.console.inputs import check_has_end, other_form, read_whole
from paralab.errors import DataError, did_you_mean

PLAIN_ENDINGS = (".txt", ".text", ".md", ".markdown")
TABLE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TEXT_ENDINGS = PLAIN_ENDINGS + TABLE_ENDINGS
_OTHER_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".pdf", ".doc", ".docx", ".rtf", ".html")
_SETTLED_NS = 2_000_000_000  # no file system counts time more coarsely than in 2 s (FAT)

T = TypeVar("T")
State = tuple[int, ...]


def state_of(path: Path) -> State:
    """Return what differs after a file has changed: device, inode, size, times. Raises: DataError where it is gone."""
    try:
        stat = path.stat()
    except OSError as error:
        raise cannot_be_read(path, error) from error
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def states_of(files: Iterable[Path]) -> dict[Path, State]:
    """Return the state of each file. Raises: DataError where one is gone."""
    return {file: state_of(file) for file in files}


@contextmanager
def unchanged(states: Mapping[Path, State]) -> Iterator[None]:
    """Read in this context what belongs to what was read before. Raises: DataError where a file has changed since."""
    try:
        yield
    except Exception:  # of any reader: perhaps of a file that is half written
        _check_unchanged(states)
        raise
    _check_unchanged(states)


def _check_unchanged(states: Mapping[Path, State]) -> None:
    for file, state in states.items():
        if state_of(file) != state:
            raise DataError(f"{file} was changed while it was read: start again when nothing writes to it")


def once_a_content(read: Callable[[Path], T]) -> Callable[[Path], T]:
    """Remember in this process what was read of a file, until the file changes.

    A file that changed less than two seconds before it was read is read again: a change in the same tick of the clock
    would not show.
    """
    known: dict[tuple, T] = {}

    def remembered(path: Path) -> T:
        try:
            state = state_of(path)
        except DataError:
            return read(path)  # which says why
        key = (path.absolute(), *state)
        if key in known:
            return known[key]
        settled = time.time_ns() - max(state[-2:]) > _SETTLED_NS
        value = read(path)
        if settled:
            known[key] = value
        return value

    return remembered


@once_a_content
def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex. Raises: DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        check_has_end(path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return what is in a file. Raises: DataError when it cannot be read, or stands for another one."""
    try:
        content = read_whole(path)
    except OSError as error:
        raise cannot_be_read(path, error) from error
    if what := other_form(content):
        raise DataError(f"data file {path} {what}")
    return content


def cannot_be_read(path: Path, error: OSError) -> DataError:
    """Return the refusal of a data file that the system does not let us read."""
    why = "a link to a file that is not there" if path.is_symlink() and not path.exists() else error.strerror
    return DataError(f"data file {path} cannot be read ({why or error}): check the path and its rights")


def ending(path: Path) -> str:
    """Return the suffix in lower case, for `book.TXT.gz` that of the file inside: `.txt`."""
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    return path.suffix.lower()


def path_of(name: str) -> Path | None:
    """Return the path that a data name stands for (`file:PATH`, or a path that exists), else None.

    Raises: DataError for a path that does not exist: `file:PATH`, or what can only be a path.
    """
    if not (typed := name.removeprefix("file:")).strip():
        raise DataError(f"data {name!r} names no file: give the path of a file or a folder")
    path = _at_home(typed, "type it out")
    if path.exists():
        return path
    if "://" in name and not name.startswith("file:"):
        raise DataError(f"data {name!r} is an address: download it first, then give the path of the file")
    near = _files_beside(path)
    same_stem = [x for x in near if x.lower().split(".")[0] == path.name.lower()]
    if not _looks_like_path(name) and not same_stem:
        return None
    if path.is_symlink():
        raise DataError(f"data {name!r} is a link to {os.readlink(path)}, which does not exist: repair the link")
    hint = f" (did you mean {path.with_name(same_stem[0])}?)" if same_stem else _closest(path, near)
    raise DataError(f"data {path} does not exist{hint}: give the path of what is there")


def _at_home(text: str, advice: str) -> Path:
    """Return a path that may begin with the home folder. Raises: DataError where nobody knows which that is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise DataError(f"{text}: there is no such home folder: {advice}") from None


def _looks_like_path(name: str) -> bool:
    """Tell whether a name is no name on the hub (OWNER/SET:CONFIG) and none of a built-in set."""
    return (
        name.startswith(("file:", "/", "./", "../", "~"))
        or name.endswith("/")
        or "\\" in name
        or name.count("/") > 1
        or Path(name).suffix.lower() in TEXT_ENDINGS + _OTHER_ENDINGS
    )


def _files_beside(path: Path) -> list[str]:
    """Return the names of folders and of text files where `path` should be."""
    try:
        return sorted(x.name for x in path.parent.iterdir() if x.is_dir() or ending(x) in TEXT_ENDINGS)
    except OSError:
        return []


def _closest(path: Path, names: list[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    hint = did_you_mean(path.name.lower(), by_lower)
    for lower, name in by_lower.items():
        if hint == f" (did you mean {lower}?)":
            return f" (did you mean {path.with_name(name)}?)"
    return ""


def cache_folder(kind: str = "tokens") -> Path:
    """Return the folder where something of that kind is kept, made if needed: in $PARALAB_CACHE, or ~/.cache/paralab.

    Raises: DataError when it cannot be written.
    """
    folder = _at_home(os.environ.get("PARALAB_CACHE") or "~/.cache/paralab", "set PARALAB_CACHE to a folder") / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cache {folder} cannot be made ({error.strerror}): set PARALAB_CACHE to a folder") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cache {folder} cannot be written: set PARALAB_CACHE to a folder that can")
    return folder
