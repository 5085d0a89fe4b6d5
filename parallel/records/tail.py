"""A log that another process writes, read as it grows."""

import json
from pathlib import Path
from typing import Any


class Tail:
    """The JSON objects of a file with one on each line, of which only what is new is read each time.

    A file that became shorter, or that was replaced, is read from its beginning again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.written_s: float | None = None  # when it was last written, in seconds since the epoch
        self._file, self._read = 0, 0  # its number on the disk, and how many bytes were read

    def follow(self) -> None:
        """Read the lines that were finished since the last call. A line that is no object is left out."""
        try:
            with open(self.path, "rb") as file:
                state = self.path.stat()
                if state.st_ino != self._file or state.st_size < self._read:
                    self._file, self._read = state.st_ino, 0
                    self.records.clear()
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return  # not there yet, or just being replaced
        self.written_s = state.st_mtime
        self._read += len(whole) + len(newline)
        self.records += filter(None, map(_object, whole.splitlines()))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
