"""Files that a command is given to read: read whole, where they have an end."""

import os
import stat
from pathlib import Path

_FORMS = {  # how files begin that are no text, and no picture or array either
    b"version https://git-lfs": "is a pointer of Git LFS, and its content was not fetched: type `git lfs pull`",
    b"BZh": "is packed with bzip2: unpack it with `bunzip2`",
    b"\xfd7zXZ": "is packed with xz: unpack it with `unxz`",
    b"\x28\xb5\x2f\xfd": "is packed with zstd: unpack it with `unzstd`",
}
LONGEST_FORM = max(map(len, _FORMS))
_ENDLESS = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def read_whole(path: Path) -> bytes:
    """Return what is in a file. A pipe that the shell made, as in `<(zcat a.csv.gz)`, is read to its end.

    Raises: OSError, also for a device or a named pipe, which may have no end.
    """
    check_has_end(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with a byte order mark or without.

    Raises: OSError as `read_whole` does; UnicodeDecodeError where it is no such text.
    """
    check_has_end(path)
    return path.read_text(encoding="utf-8-sig")


def check_has_end(path: Path) -> None:
    """Raise OSError for a path that is not there, and for what one may wait at for ever: a device or a named pipe."""
    what = _ENDLESS.get(stat.S_IFMT(path.stat().st_mode))
    if what and not os.path.realpath(path).startswith("/proc/"):  # as pipes of a shell are: /proc/self/fd/63
        raise OSError(0, f"it is {what}, not a file", str(path))


def other_form(start: bytes) -> str:
    """Say what a file is by its first `LONGEST_FORM` bytes, where it stands for another one; else return nothing."""
    return next((what for mark, what in _FORMS.items() if start.startswith(mark)), "")
