"""A process that has used gloo waits a moment when it ends."""

import atexit
import time
from functools import cache

_RELEASE_S = 0.05  # a turn of gloo's threads, also where other processes keep the cores busy


@cache
def wait_for_gloo() -> None:
    """Have this process wait, when it ends, until the threads of gloo have released the tensors of the last collective.

    They need Python for it, and a thread that asks for Python while it ends aborts the process ("terminate called
    without an active exception", torch 2.13), although all of its work is done.
    """
    atexit.register(time.sleep, _RELEASE_S)
