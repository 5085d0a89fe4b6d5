"""Files on disk: their sha256, where caches live, and how a name on the command line becomes a path."""

import hashlib
import os
from pathlib import Path

from parallel.errors import DataError


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex. Raises: DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"data file {path} cannot be read ({error.strerror}): check the path and its rights") from error
    return digest.hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return what is in a file. Raises: DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        to_nothing = path.is_symlink() and not path.exists()
        reason = "a link to a file that is not there" if to_nothing else error.strerror
        raise DataError(f"data file {path} cannot be read ({reason}): check the path and its rights") from error


def path_of(name: str) -> Path | None:
    """Return the path that a data name stands for (`file:PATH`, or a path that exists), else None.

    Raises: DataError when `file:PATH` does not exist.
    """
    path = Path(name.removeprefix("file:")).expanduser()
    if path.exists():
        return path
    if name.startswith("file:"):
        raise DataError(f"data {name!r}: {path} does not exist: write an existing path after file:")
    return None


def cache_folder(kind: str = "tokens") -> Path:
    """Return the folder where something of that kind is kept, made if needed: in $PARALAB_CACHE, or ~/.cache/paralab.

    Raises: DataError when it cannot be written.
    """
    folder = Path(os.environ.get("PARALAB_CACHE") or "~/.cache/paralab").expanduser() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cache {folder} cannot be made ({error.strerror}): set PARALAB_CACHE to a folder") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cache {folder} cannot be written: set PARALAB_CACHE to a folder that can")
    return folder
