"""Output files of a command: checked before the work whether they can be written, and written whole."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from paralab.errors import ParalabError, UsageError, WriteError

_ELSEWHERE = "choose another place with --out"
_ROOM = "make room there, or choose another place"
_ERROR_OF_RUST = re.compile(r"\(os error (\d+)\)")  # in what libraries that are written in Rust raise, safetensors too


def check_writable(
    path: Path, *, inputs: Sequence[Path] = (), make_folders: bool = False, advice: str = _ELSEWHERE
) -> None:
    """Raise UsageError when a file could not be written, or is one of those that are read; leave nothing behind.

    make_folders: whether the folders above it will be made where they are missing. advice: what to type instead.
    """
    if real(path) in map(real, inputs):
        raise UsageError(f"{path} is one of the files that are read, and would be replaced: {advice}")
    try:
        if path.exists():
            with open(path, "r+b" if path.is_file() else "ab"):  # a pipe cannot be read
                return
        folder = next(f for f in path.absolute().parents if f.exists()) if make_folders else path.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _refusal(path, error, advice) from None


def check_outputs(
    outputs: Mapping[str, Path | str | None], *, inputs: Sequence[Path] = (), make_folders: bool = False
) -> None:
    """Check the files of several options, by option; None where one writes none.

    Raises: UsageError as `check_writable` does, and where two options name the same file.
    """
    seen: dict[Path, str] = {}
    for option, given in outputs.items():
        if given is None:
            continue
        path = Path(given)
        if other := seen.get(real(path)) if _is_file_to_be(path) else None:
            raise UsageError(f"{other} and {option} are both {path}, and one would replace the other: name two files")
        seen[real(path)] = option
        check_writable(path, inputs=inputs, make_folders=make_folders, advice=f"choose another place with {option}")


def _is_file_to_be(path: Path) -> bool:
    """Whether what is written there replaces what is there: not so of a device, such as /dev/stdout."""
    return path.is_file() or not path.exists()


def real(path: Path) -> Path:
    """Return the absolute path of what a path leads to; of a link that leads to itself, that of the link."""
    return Path(os.path.realpath(path))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that no half of it is ever seen.

    A link is followed, and what is no file (`/dev/stdout`) is written to as it is.

    Raises: UsageError when it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
    except OSError as error:
        raise _refusal(path, error, _ROOM) from None
    with written_whole(path) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside a place, to write to; it is moved there at the end, and gone where there is none.

    Raises: UsageError when it cannot be written.
    """
    path = real(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise _refusal(path, error, _ROOM) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Give a folder to write files to, which come to their place at the end, and are gone where there is none.

    path: a folder that is not there yet, or is empty.
    Raises: UsageError when they cannot be written.
    """
    path, is_new = real(path), not path.exists()
    partial = path / f".partial.{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(partial.iterdir()):
            file.replace(path / file.name)
    except Exception as error:
        if (why := _of_writing(error, partial)) is None:
            raise
        raise _refusal(path, why, _ROOM) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # it stays where anything is in it
                path.rmdir()


def _of_writing(error: Exception, folder: Path) -> OSError | None:
    """Return an error of writing to a folder as one of the system; None for any other, as of a file that was read."""
    if isinstance(error, ParalabError):
        return None
    if isinstance(error, OSError):
        return error if error.filename is None or str(error.filename).startswith(str(folder)) else None
    found = _ERROR_OF_RUST.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file. Raises: WriteError when it cannot be written."""
    try:
        with open(path, "ab", buffering=0) as file:
            write_all(file, content)
    except OSError as error:
        raise WriteError(f"{path} cannot be written ({error.strerror}): make room there") from error


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write bytes to an unbuffered file, however few it takes at a time. Raises: OSError when it cannot be written."""
    while data:
        data = data[file.write(data) :]


def _refusal(path: Path, error: OSError, advice: str) -> UsageError:
    return UsageError(f"{path} cannot be written ({error.strerror}): {advice}")
