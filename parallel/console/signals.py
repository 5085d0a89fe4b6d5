"""What SIGINT (Ctrl-C) and SIGTERM do to a command: one line, and the status by which a shell reports them.

What trains or measures hears them itself while it does. This loads nothing heavy: `paralab` sets the first handlers
before it imports anything else.
"""

import contextlib
import os
import signal
import sys
import time
from types import FrameType

SAME_SIGNAL_S = 1.0  # `timeout` tells a process and then its group, which it is in
_SAID = {signal.SIGINT: b"paralab: interrupted\n", signal.SIGTERM: b"paralab: stopped by SIGTERM\n"}


def is_command() -> bool:
    """Return whether this process was started as `paralab`, and did not import it for a program of its own."""
    name = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    as_module = name == "-m"  # `python -m paralab.cli`, as long as packages on the way to it are imported
    return (name == "paralab" or as_module) and "multiprocessing.spawn" not in sys.modules  # which its helpers have


def end_at_once() -> None:
    """Let a signal end this process: for as long as it has started nothing."""
    for number in _SAID:
        signal.signal(number, _end)


def end_in_order() -> None:
    """Let a signal raise, KeyboardInterrupt or SystemExit, so that files and processes are left in order.

    Raises: ValueError outside of the main thread, which alone hears signals.
    """
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _stop)


def _end(number: int, frame: FrameType | None) -> None:
    _say(number)
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):  # which may swallow what is raised, and nothing was started yet
        _end(number, frame)
    raise KeyboardInterrupt


def _stop(number: int, frame: FrameType | None) -> None:
    if _is_importing(frame):
        _end(number, frame)
    heard_s = time.monotonic()

    def again(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - heard_s > SAME_SIGNAL_S:
            os._exit(128 + number)

    signal.signal(number, again)  # a second one ends what is left of this process
    _say(number)
    raise SystemExit(128 + number)


def _say(number: int) -> None:
    if number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ:
        return  # torchrun ends the other ranks by it when one has failed, and says so itself
    with contextlib.suppress(OSError):
        os.write(2, _SAID[signal.Signals(number)])


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
