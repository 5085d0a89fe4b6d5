"""The process that all local ranks are forked from, with what they import already imported."""

import contextlib
import os
import signal
from collections.abc import Iterator

from paralab.processes.failure import STOPS


def start() -> None:
    """Start what all ranks are forked from, with signals blocked that come to all processes of a group at once.

    They are SIGINT from a terminal, SIGTERM from `timeout` and schedulers. Ranks inherit that, and hear them once they
    can leave a row (`failure.stopping`); what they are forked from ends with the launcher.
    """
    from multiprocessing import forkserver, resource_tracker

    with without_working_folder():
        resource_tracker.ensure_running()  # it changes the mask itself
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


@contextlib.contextmanager
def without_working_folder() -> Iterator[None]:
    """Start Pythons that do not import from the working folder, where a copy.py would stand in for Python's own."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
