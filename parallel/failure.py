"""Which rank failed first, at which step, and why: one line, from that rank and not from its victims.

When a rank raises, its peers find their connections closed and raise as well. The first to reach the shared store
claims the failure before its sockets close, so those that follow know that they are victims and stay silent.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from parallel.cluster import Rank
from parallel.errors import DivergedError, ParalabError, RankError
from parallel.measure.record import Status

_KEY = "paralab/first_failure"
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")
VICTIM_EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h: ended because another rank did
_GRACE_S = 3.0  # for a failed rank to claim, when a victim was faster


@dataclass
class Progress:
    """Where a rank is; the loop keeps it up to date."""

    step: int | None = None


@dataclass(frozen=True)
class Failure:
    """The first failure of a run."""

    rank: int
    step: int | None
    status: Status
    reason: str
    exit_status: int

    def __str__(self) -> str:
        at = f" at step {self.step}" if self.step is not None else ""
        return f"rank {self.rank} failed first{at}: {self.reason}"


def first_failure(rank: int, progress: Progress, error: BaseException) -> Failure | None:
    """Return this rank's failure if it is the first of the run, None when another rank claimed it."""
    lost_peer = any(text in str(error) for text in _LOST_PEER)
    deadline = time.monotonic() + _GRACE_S
    while lost_peer and time.monotonic() < deadline:
        if _claimed():
            return None
        time.sleep(0.05)
    if not _claim(rank):
        return None
    reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
    if lost_peer:
        reason = "another rank ended without a word (killed, or out of memory): see the launcher's exit codes"
    status = getattr(error, "exit_status", 1) if isinstance(error, ParalabError) else 1
    return Failure(rank, progress.step, _status(error), reason, status)


@contextlib.contextmanager
def guard(rank: Rank, progress: Progress, on_first: Callable[[Failure], None] = lambda failure: None) -> Iterator[None]:
    """Turn an exception into one line and an exit status; on_first is called on the rank that failed first.

    With other ranks around the process ends at once, since leaving in good order would wait for them. Alone, a
    user's error passes through and any other becomes a RankError.
    """
    try:
        yield
    except BaseException as error:
        failure = first_failure(rank.rank, progress, error)
        if failure is not None:
            on_first(failure)
        if rank.world_size == 1:
            if isinstance(error, (ParalabError, KeyboardInterrupt)):
                raise
            raise RankError(str(failure)) from error
        if failure is not None:
            print(f"paralab: error: {failure}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failure.exit_status if failure else VICTIM_EXIT_STATUS)


def _status(error: BaseException) -> Status:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "oom"
    return "aborted" if isinstance(error, KeyboardInterrupt) else "crash"


def _claim(rank: int) -> bool:
    try:
        return _store().compare_set(_KEY, "", str(rank)).decode() == str(rank)
    except Exception:
        return _store_is_gone()


def _claimed() -> bool:
    try:
        return _store().check([_KEY])
    except Exception:
        return not _store_is_gone()


def _store_is_gone() -> bool:
    """Without a process group there is no one else; with one, whoever held the store has failed before us."""
    return not dist.is_initialized()


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
