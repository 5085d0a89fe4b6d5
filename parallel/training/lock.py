"""Lock the folder of a training run against a second one: the lock ends with the process that holds it.

The kernel keeps it (flock), and so do file servers that several nodes share: NFS for one, where a lock reaches the
server. Where a file system has no locks that is said, and training goes on without one.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

from paralab.console.clock import Moment
from paralab.errors import ConfigError, FolderInUseError

FILE = "in-use.json"  # who trains there: gone after an end in order, without a lock on it after any other
_WAIT_S = 10.0  # for the processes of a start before this one, which a launcher is ending
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Holds the folder of a run. Raises, when entered: FolderInUseError; ConfigError where nothing can be written.

    starts_again: whether a launcher may have started this before and be ending what is left of that. launch: names the
    launcher of several nodes that does: it has one start at a time, so a lock that a node took along when it went away
    does not count.
    """

    def __init__(self, folder: Path, *, starts_again: bool = False, launch: str | None = None) -> None:
        self.folder, self.launch = folder, launch
        self.wait_s = _WAIT_S if starts_again else 0.0
        self.file = folder / FILE
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        """Take the folder. Raises: FolderInUseError; ConfigError where nothing can be written."""
        self._is_new = not self.folder.exists()
        deadline_s = time.monotonic() + self.wait_s
        while not self._taken():
            if time.monotonic() < deadline_s:
                time.sleep(0.1)
                continue
            holder = self._holder()
            if self.launch is not None and holder.get("launch") == self.launch:
                print(f"{self.folder} is still locked by {_named(holder)}, which has ended", file=sys.stderr)
                break
            raise FolderInUseError(
                f"{self.folder} is in use by the training of {_named(holder)}: wait until it has ended, or "
                "give another --out"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self.file.unlink()  # before the lock goes: another start may have it right after
        os.close(self._descriptor)
        self._descriptor = None
        if self._is_new:
            with contextlib.suppress(OSError):  # of a run that was refused: it holds nothing
                self.folder.rmdir()

    def _taken(self) -> bool:
        """Try to lock the file; return False when another process has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"--out {self.folder} cannot be written ({error.strerror}): give a folder in which files can be made"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"{self.folder} does not support locks ({error.strerror}): start no second training there",
                file=sys.stderr,
            )
        if not self._is_named(descriptor):  # its holder has just deleted it
            os.close(descriptor)
            return self._taken()
        self._descriptor = descriptor
        who = {"host": socket.gethostname(), "process": os.getpid(), "since": Moment.now().iso, "launch": self.launch}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode() + b"\n", 0)
        return True

    def _is_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False

    def _holder(self) -> dict[str, object]:
        """Return what the holder says of itself; it may just be about to."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


def _named(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('host')} since {holder.get('since')}"
