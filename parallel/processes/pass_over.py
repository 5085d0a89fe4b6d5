"""Passing over signals that come to a process which is about to end in its own way."""

import signal
from collections.abc import Iterable
from types import FrameType


def pass_over(numbers: Iterable[int]) -> None:
    """Have this process do nothing on these signals; one that came before and was not yet heard is passed over too.

    SIG_IGN would have Python complain of that one, and leave it unheard while a handler of another kind is due.
    Raises: ValueError outside of the main thread.
    """
    for number in numbers:
        signal.signal(number, _nothing)


def _nothing(number: int, frame: FrameType | None) -> None:
    pass
