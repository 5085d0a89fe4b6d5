"""Liveness of the ranks of a run: which have joined, left, ended or stopped, recorded in the store that all share."""

import contextlib
import json
import socket
import sys
import threading
import time
from functools import cached_property
from pathlib import Path

import psutil
import torch.distributed as dist

from paralab.errors import WorldError

_SAY_AFTER_S = 10.0  # a start that takes longer says whom it waits for


class Liveness:
    """One rank's view of all ranks. recordings: the folder for flight recordings, None where none are made."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, *, recordings: Path | None = None) -> None:
        self._store = dist.PrefixStore("paralab", store)
        self.rank, self.world_size, self.recordings = rank, world_size, recordings

    def join(self, timeout_s: float) -> None:
        """Say that this rank is there, and return when all are. Raises: WorldError naming those that did not come."""
        me = psutil.Process()
        self._store.set(f"joined/{self.rank}", json.dumps([socket.gethostname(), me.pid, me.create_time()]))
        began_s, said = time.monotonic(), False
        while not self._all_joined():
            waited_s = time.monotonic() - began_s
            if waited_s > timeout_s:
                raise WorldError(
                    f"{self._who_is_missing()}, given up after {timeout_s:g} s: see what keeps it, or use --timeout-s"
                )
            if waited_s > _SAY_AFTER_S and not said and self.rank == min(self._marked("joined")):
                print(f"paralab: {self._who_is_missing()}", file=sys.stderr, flush=True)
                said = True
            time.sleep(min(0.02 + waited_s / 10, 0.5))

    def _all_joined(self) -> bool:
        return self._store.check([f"joined/{rank}" for rank in range(self.world_size)])

    def _who_is_missing(self) -> str:
        joined = self._marked("joined")
        missing = [str(rank) for rank in range(self.world_size) if rank not in joined]
        return f"{len(joined)} of {self.world_size} ranks joined, waiting for rank {', '.join(missing)}"

    def claim(self) -> bool:
        """Return whether this rank is the first to fail."""
        answer = self._ask_to_be_first()
        # without one whoever held the store has ended: a launcher, or the rank that failed first
        return self.rank == 0 if answer is None else answer

    def claim_within(self, seconds: float, *, otherwise: bool) -> bool:
        """Return whether this rank is the first to fail; `otherwise` when the store does not answer in time."""
        answers: list[bool | None] = []
        asking = threading.Thread(target=lambda: answers.append(self._ask_to_be_first()), daemon=True)
        asking.start()
        asking.join(seconds)
        return otherwise if not answers or answers[0] is None else answers[0]

    def _ask_to_be_first(self) -> bool | None:
        try:
            return self._store.compare_set("first_failure", "", str(self.rank)).decode() == str(self.rank)
        except RuntimeError:
            return None

    def claimed(self) -> bool:
        """Return whether a rank has claimed to be the first to fail."""
        try:
            return self._store.check(["first_failure"])
        except RuntimeError:
            return self.rank != 0

    def mark(self, word: str) -> None:
        """Tell all: `left` when this rank's work is done, `waited` when it found that another one does not answer."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"{word}/{self.rank}", "1")

    def lost(self) -> tuple[int, str] | None:
        """Return a rank that has ended or is stopped (on this machine) or has left, and which of these; or None."""
        with contextlib.suppress(RuntimeError):
            if not self._all_joined():  # the store would wait for what a rank that has not joined says
                return None
            left = self._marked("left") - {self.rank}
            for rank, process in self._neighbours.items():
                if state := _state(process):
                    return rank, "left" if state == "ended" and rank in left else state
            for rank in sorted(left):
                return rank, "left"
        return None

    def silent(self) -> list[int]:
        """Return the ranks that did not find that another one does not answer."""
        with contextlib.suppress(RuntimeError):
            return sorted(set(range(self.world_size)) - self._marked("waited"))
        return []

    def end(self, rank: int) -> None:
        """End a rank that hears no other signal, if it is on this machine."""
        if (process := self._neighbours.get(rank)) is not None:
            with contextlib.suppress(psutil.Error):
                process.kill()  # does nothing to a process that has its number by chance

    @property
    def is_local(self) -> bool:
        """Whether all ranks are on this machine."""
        return len(self._neighbours) == self.world_size - 1

    @cached_property
    def _neighbours(self) -> dict[int, psutil.Process | None]:
        """Return the other ranks on this machine; None for one that has ended."""
        found: dict[int, psutil.Process | None] = {}
        for rank in range(self.world_size):
            host, pid, created = json.loads(self._store.get(f"joined/{rank}"))
            if rank != self.rank and host == socket.gethostname():
                found[rank] = _process(pid, created)
        return found

    def _marked(self, word: str) -> set[int]:
        return {rank for rank in range(self.world_size) if self._store.check([f"{word}/{rank}"])}


def _process(pid: int, created: float) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process if process.create_time() == created else None
    return None


def _state(process: psutil.Process | None) -> str | None:
    with contextlib.suppress(psutil.Error):
        status = process.status() if process else psutil.STATUS_DEAD
        if status == psutil.STATUS_STOPPED:
            return "stopped"
        return "ended" if status in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE) else None
    return "ended"
