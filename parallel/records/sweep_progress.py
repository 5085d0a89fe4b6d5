"""How far a sweep is: a small file beside its rows, for whoever watches it."""

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from paralab.console.outputs import write_whole
from paralab.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """How many runs are done, of how many as far as is known, and what runs now.

    began_s: when the sweep began, in seconds since the epoch. taken: runs since then; others had their rows already.
    """

    group: str
    done: int
    total: int
    taken: int
    now: str | None  # None once it has ended
    began_s: float
    host: str = ""
    process: int = 0

    def write(self, csv_path: str | Path) -> None:
        """Write it beside a file of rows. A disk that is full does not end a sweep: the rows matter, this does not."""
        path = progress_path(csv_path)
        here = {"host": socket.gethostname(), "process": os.getpid()}
        with contextlib.suppress(UsageError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(self) | here).encode())


def progress_path(csv_path: str | Path) -> Path:
    """Return where the progress of a sweep is: in the folder of the logs of its runs."""
    return Path(csv_path).with_suffix("") / "sweep.json"


def read_sweep(csv_path: str | Path) -> SweepProgress | None:
    """Return the progress of the last sweep into a file of rows; None where there is none, or it cannot be read."""
    try:
        values = json.loads(progress_path(csv_path).read_text(encoding="utf-8"))
        found = SweepProgress(**{field.name: values[field.name] for field in fields(SweepProgress)})
        whole = (found.done, found.total, found.taken, found.process)
        return found if all(type(number) is int for number in whole) and found.began_s + 0.0 else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
