"""Checksum of many files by their contents: computed once, and again only when a file has changed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.data.files import cache_folder, read_bytes
from paralab.errors import DataError

_FORMAT = 1  # part of the key: raise it when the same files would give another sum, or are checked for more


def contents_sha256(files: Sequence[tuple[str, Path]], *, check: Callable[[bytes, Path], None]) -> str:
    """Return one sha256 over names and contents of files, in order; of the paths it depends on the names alone.

    files: a name that does not depend on where the files lie, and the path. check: called with the content of each,
    to raise DataError. The sum is kept in the cache folder, where there is one, under sizes, times and inodes of the
    files; of several processes that ask at the same time one reads, and says so on stderr where it takes long, and the
    others wait.

    Raises: DataError when a file cannot be read.
    """
    listing = hashlib.sha256(json.dumps([_FORMAT, *map(_stamp, files)]).encode()).hexdigest()
    try:
        kept = cache_folder("pictures") / f"{listing[:32]}.json"
    except DataError:  # no place to keep it
        kept = None
    with FileLock(kept.with_suffix(".lock")) if kept else nullcontext():
        known = _read_kept(kept) if kept else None
        if known is not None:
            return known
        digest = hashlib.sha256()
        with Phases(Moment.now(), transient=True) as phases:
            phases.begin(f"reading {len(files):,} files{' for the first time' if kept else ''}", total=len(files))
            for name, path in files:
                content = read_bytes(path)
                check(content, path)
                digest.update(f"{name}\t{hashlib.sha256(content).hexdigest()}\n".encode(errors="surrogateescape"))
                phases.advance()
        if kept:
            kept.write_text(json.dumps({"sha256": digest.hexdigest()}))
    return digest.hexdigest()


def _stamp(file: tuple[str, Path]) -> list[object]:
    """Return what changes when a file does: the time of the last change of an inode cannot be set back."""
    name, path = file
    try:
        stat = path.stat()
    except OSError:
        read_bytes(path)  # says why not
        raise
    return [name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_kept(path: Path) -> str | None:
    try:
        sha256 = json.loads(path.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return sha256 if isinstance(sha256, str) and len(sha256) == 64 else None
