"""What a command says beside its result: warnings, each a line on the screen, also where it ends with an error."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from paralab.records.cells import one_line


@contextmanager
def told(command: str) -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of a piece of work, and say each once at its end, however it ends."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        for message in dict.fromkeys(str(warning.message) for warning in caught):
            print(f"paralab {command}: {one_line(message)}", file=sys.stderr)
