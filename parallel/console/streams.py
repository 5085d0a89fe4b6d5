"""Keep standard streams usable when they are closed, or when nobody reads the pipe any more.

A training must not end because `| head` has read enough, or because a daemon starts it with nothing open. What nobody
can read is dropped; the exit status is that of the work.
"""

import codecs
import io
import os
import sys
from typing import Any, cast

lost: list[str] = []  # why something was not written, apart from readers that have gone


class _Pipe(io.FileIO):
    """A file that drops what is written to it once nobody reads at its other end, or its disk is full."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                lost.append(error.strerror or str(error))
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def keep_open() -> None:
    """Open the standard streams that are closed, to nowhere, and let the others survive the end of their readers.

    Call it first of all: a file that is opened while they are closed would take their numbers. Streams that were
    replaced (by a test) stay as they are.
    """
    _fill_numbers()
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream, first = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is not first:
            continue
        if stream is None:
            setattr(sys, name, open(number, "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper) and not isinstance(stream.buffer, _Buffer):
            stream.flush()
            setattr(sys, name, _outlet(stream, number))
        setattr(sys, f"__{name}__", getattr(sys, name))


class _Buffer(io.BufferedWriter):
    """The buffer of a stream that `keep_open` has replaced."""


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Give back the bytes of a path that are no text, as in a locale without letters; show anything else as \\xe9."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("paralab.escaped", _escaped)
# what the terminal cannot show, such as é in ASCII, is shown as \xe9
_SHOWN = {"strict": "backslashreplace", "surrogateescape": "paralab.escaped"}


def _outlet(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        _Buffer(cast(io.RawIOBase, _Pipe(number, "w", closefd=False))),
        encoding=stream.encoding,
        errors=_SHOWN.get(stream.errors or "strict", stream.errors),
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _fill_numbers() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # it takes the lowest free number, and the processes that this one starts are to have it as well
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY), True)
