"""What other programs do on this machine while something is measured, which they disturb."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

QUIET = 0.1  # cores that other programs may take
_LOOKS_S = 0.5
_STAT = Path("/proc/stat")


class Load:
    """What the processors of this machine and the ranks of a run have done since this was made."""

    def __init__(self) -> None:
        self.began_s, self.busy_s, self.own_s = time.monotonic(), busy_s(), time.process_time()

    def others(self) -> float | None:
        """Return how many cores other programs took; None where the system does not say. Collective over all ranks."""
        own = torch.tensor([time.process_time() - self.own_s], dtype=torch.float64)
        busy, elapsed_s = busy_s(), time.monotonic() - self.began_s
        if _several():
            dist.all_reduce(own)
        if busy is None or self.busy_s is None:
            return None
        return max(busy - self.busy_s - own.item(), 0.0) / elapsed_s


def busy_s(stat: Path = _STAT) -> float | None:
    """Return the seconds that the processors of this machine have worked since its start; None where unknown."""
    try:
        fields = stat.read_text().split("\n", 1)[0].split()[1:9]  # the last two, of guests, are in the first two
    except OSError:
        return None
    worked = sum(int(x) for i, x in enumerate(fields) if i not in (3, 4))  # idle, waiting for disks
    return worked / os.sysconf("SC_CLK_TCK")


def wait_for_quiet(*, at_most_s: float, waiting: Callable[[], None] = lambda: None) -> bool:
    """Wait until other programs leave the processors alone; return whether they did. Collective over all ranks.

    waiting: called twice a second by rank 0 where they do not.
    """
    deadline = time.monotonic() + at_most_s
    while True:
        # 1 where all is quiet, 0 while waiting, -1 where the time is up
        state = torch.zeros(1)
        if not _several() or dist.get_rank() == 0:
            state[0] = float(_is_quiet()) or -float(time.monotonic() > deadline)
        if _several():
            dist.broadcast(state, 0)
        if state.item():
            return state.item() > 0
        if not _several() or dist.get_rank() == 0:
            waiting()


def _is_quiet() -> bool:
    before, began_s = busy_s(), time.monotonic()
    time.sleep(_LOOKS_S)
    after = busy_s()
    return before is None or after is None or (after - before) / (time.monotonic() - began_s) < QUIET


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
