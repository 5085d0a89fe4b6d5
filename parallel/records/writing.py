"""Adding rows to a CSV file: beside other writers, after one that died, and never to a file of another form."""

import fcntl
import os
import shlex
import tempfile
from itertools import chain, count
from pathlib import Path

from paralab.console import sheet
from paralab.console.outputs import check_writable, write_all
from paralab.errors import UsageError, WriteError
from paralab.records.cells import encode, line_of
from paralab.records.changes import SCHEMA
from paralab.records.reading import read
from paralab.records.row import RunRecord, header
from paralab.records.schema import few

_OR_ELSEWHERE = ", or write to another file with --out NEW.csv"


def check_appendable(path: str | Path, *, otherwise: str = _OR_ELSEWHERE) -> None:
    """Raise UsageError when rows could not be added to a file, before there is anything to lose.

    otherwise: what to do about a file that is of another form, if not to move it away.
    """
    path = Path(path)
    check_writable(path, make_folders=True)
    if path.is_file() and (content := path.read_bytes()):
        _check_header(content, path, otherwise=otherwise)
        read(path)


def append(path: str | Path, record: RunRecord) -> None:
    """Add one row to a CSV file, creating it with its header; safe with other writers at the same time.

    What a writer that died left unfinished at the end of the file is cut off first. Returns when the row is on disk.

    Raises: UsageError when the file has another header, or was saved by another program; WriteError when the row cannot
    be written, as when the disk is full: it is kept among the temporary files, if there is room.
    """
    path = Path(path)
    row = line_of(encode(value, name, RunRecord) for name, value in vars(record).items())
    try:
        _append(path, row)
    except OSError as error:
        kept = _kept(line_of(header()) + row, f"paralab-{record.run_id}.csv")
        where = f", and the row is kept in {kept}" if kept else ""
        raise WriteError(f"{path} cannot be written ({error.strerror}): make room there{where}") from error


def _append(path: Path, row: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        content = file.read()
        _check_header(content, path)
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        file.seek(len(whole))
        try:
            write_all(file, row if whole else line_of(header()) + row)
            os.fsync(file.fileno())
        except OSError:
            file.truncate(len(whole))  # no part of a row stays
            raise


def _kept(content: bytes, name: str) -> Path | None:
    """Write a file among the temporary ones; None where there is no room for it either.

    One that is there stays: the row of the failure, which follows, does not take the place of what was measured.
    """
    path = Path(tempfile.gettempdir()) / name
    try:
        with open(path, "xb") as file:
            file.write(content)
    except FileExistsError:
        return path
    except OSError:
        path.unlink(missing_ok=True)
        return None
    return path


def _check_header(content: bytes, path: Path, *, otherwise: str = _OR_ELSEWHERE) -> None:
    """Raise UsageError when rows cannot be added to a file with this content, because it is not as we write it."""
    head = line_of(header())
    if content.startswith(head) or head.startswith(content):
        return
    names = chain([f"{path}.before"], (f"{path}.before{n}" for n in count(2)))
    free = next(name for name in names if not os.path.lexists(name))
    advice = f"move it away to begin a new one: {shlex.join(['mv', str(path), free])}{otherwise}"
    if marks := sheet.marks_of_another_program(content):
        shown = ", ".join(marks)
        raise UsageError(f"{path} was saved by another program ({shown}), so no rows are added to it: {advice}")
    found = content.split(b"\n", 1)[0].decode(errors="replace").split(",")
    missing, unknown = [c for c in header() if c not in found], [c for c in found if c not in header()]
    difference = "; ".join(
        f"{what} {few(names)}" for what, names in (("it lacks", missing), ("it has the unknown", unknown)) if names
    )
    raise UsageError(f"{path} has other columns than schema {SCHEMA} ({difference or 'another order'}): {advice}")
