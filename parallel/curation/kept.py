"""The signatures of a text on disk: written as they are made, so that an interrupted command goes on where it was.

They are kept in `~/.cache/paralab` (or `$PARALAB_CACHE`) as tokens are, under a key that depends on the content.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from paralab.console.outputs import write_whole
from paralab.console.phases import Phases
from paralab.curation.progress import Percent, in_order
from paralab.curation.signatures import Near, signatures
from paralab.curation.units import Texts, Unit
from paralab.data.files import cache_folder, sha256_of, unchanged
from paralab.data.text_files import checksum
from paralab.errors import DataError

_FORMAT = 1  # part of the key: raise it when the same text would have other signatures
_TASK_UNITS, _TASK_CHARS = 512, 1 << 18  # of what a process is given at a time


def signatures_of(texts: Texts, near: Near, *, workers: int, phases: Phases) -> np.ndarray:
    """Return what is kept of each unit, (units,) of `near.record`, mapped from disk.

    What an earlier command has made of the same texts is used again, also where it was interrupted. Processes that ask
    at the same time wait for the first. workers: processes that share the work.
    Raises: DataError for a text that cannot be read.
    """
    near.check()
    path = _path(texts, near)
    with FileLock(path.with_suffix(".lock")):
        if not _is_whole(path):
            try:
                with unchanged(texts.states):
                    _make(path, texts, near, workers=workers, phases=phases)
            except DataError:  # what was written is perhaps of other texts than the key says
                path.unlink(missing_ok=True)
                raise
            write_whole(path.with_suffix(".sha256"), sha256_of(path).encode())
    return np.memmap(path, near.record, mode="r") if path.stat().st_size else np.zeros(0, near.record)


def _path(texts: Texts, near: Near) -> Path:
    contents = [checksum(file) for file in texts.files]
    key = json.dumps([_FORMAT, contents, texts.by, texts.column, vars(near)])
    return cache_folder("signatures") / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"


def _is_whole(path: Path) -> bool:
    """Return whether all units are there, as they were written. What is not as it was written is removed, and said."""
    end = path.with_suffix(".sha256")
    if not end.is_file() or not path.is_file():
        return False
    if end.read_text() == sha256_of(path):
        return True
    print(f"paralab: kept signatures are damaged ({path}): made again", file=sys.stderr)
    path.unlink()
    end.unlink()
    return False


def _make(path: Path, texts: Texts, near: Near, *, workers: int, phases: Phases) -> None:
    with path.open("r+b" if path.exists() else "w+b") as file:
        done = _done(file, near)
        if len(done):
            print(f"paralab: going on after {len(done):,} {texts.noun} that an earlier command did", file=sys.stderr)
        percent = Percent(phases, f"reading {texts.noun}", total=texts.n_chars)
        percent.add(int(done["n_chars"].sum()))
        rest = islice(texts.units(), len(done), None)
        for made in in_order(_Signatures(near), tasks(rest), workers=workers):
            file.write(made.tobytes())
            file.flush()
            percent.add(int(made["n_chars"].sum()))


class _Signatures:
    """`signatures` as something that travels by pickle."""

    def __init__(self, near: Near) -> None:
        self.near = near

    def __call__(self, units: list[Unit]) -> np.ndarray:
        return signatures(units, self.near)


def _done(file: BinaryIO, near: Near) -> np.ndarray:
    """Return the records that are there, and stand behind the last whole one."""
    size = near.record.itemsize
    n_done = file.seek(0, 2) // size
    file.truncate(n_done * size)
    file.seek(0)
    done = np.fromfile(file, near.record, n_done)[["n_chars"]]
    file.seek(n_done * size)
    return done


def tasks(units: Iterator[Unit]) -> Iterator[list[Unit]]:
    """Regroup units into what one process is given at a time: few of them, and little text."""
    task: list[Unit] = []
    n_chars = 0
    for unit in units:
        task.append(unit)
        n_chars += len(unit.text) if isinstance(unit.text, str) else _TASK_CHARS
        if len(task) == _TASK_UNITS or n_chars >= _TASK_CHARS:
            yield task
            task, n_chars = [], 0
    if task:
        yield task
