"""Commands, workers and ranks that end when the process that started them does, however that one ends."""

import contextlib
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from paralab.errors import VICTIM_EXIT_STATUS

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2); it stays through execv
_LAST_WORDS_S = 4.0  # from the end of the launcher to that of its ranks
_PUTS_AWAY_S = 20.0  # from SIGTERM on, longer than `paralab cluster` gives its nodes
_HOLD = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_SET_PARENT_DEATH_SIGNAL}, {int(signal.SIGTERM)})
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def with_parent(words: Sequence[str]) -> list[str]:
    """Return a command that does what `words` do, and gets SIGTERM when the thread that starts it is gone.

    words: the path of a program, and its arguments. The thread is gone when its process was ended by SIGKILL or SIGHUP,
    too, after which nothing else would end a command in a session of its own. Elsewhere than on Linux, which alone has
    such a signal, the command is returned as it is.
    """
    if sys.platform != "linux":
        return list(words)
    return [sys.executable, "-I", "-S", "-c", _HOLD, str(os.getpid()), *words]


def run_whole(
    words: Sequence[str], *, limit_s: float | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command `with_parent`, and return what it wrote.

    Where its time is up or this process is interrupted it gets SIGTERM, and time to put away what it has made. A second
    interruption does not wait.
    Raises: subprocess.TimeoutExpired after limit_s.
    """
    process = subprocess.Popen(
        with_parent(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except BaseException:
        process.terminate()
        try:
            process.communicate(timeout=_PUTS_AWAY_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        raise
    return subprocess.CompletedProcess(list(words), process.returncode, out, err)


def end_with_parent() -> None:
    """End this process, a worker that multiprocessing started, as soon as the one that started it is gone.

    A worker waits for tasks from a pipe that it could write to as well, so that it would wait for ever.
    """
    if (parent := multiprocessing.parent_process()) is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with(launcher: int) -> None:
    """Have this process asked to end when the launcher has ended, however that happened, and then made to (Linux)."""
    if not hasattr(os, "pidfd_open"):
        return

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(launcher)], [], [])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST_WORDS_S)
        os._exit(VICTIM_EXIT_STATUS)

    threading.Thread(target=watch, daemon=True).start()
