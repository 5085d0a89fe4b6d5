"""Tasks that fail, for `parallel.launch`."""

import os
import signal

import torch
import torch.distributed as dist

from parallel.cluster import Rank
from parallel.failure import Progress


def raise_at(rank: Rank, progress: Progress, who: int, when: int) -> None:
    """Reduce for ever; one rank raises at a step."""
    for step in range(10_000):
        progress.step = step
        if rank.rank == who and step == when:
            raise ValueError("the batch is empty")
        dist.all_reduce(torch.ones(1))


def die_at(rank: Rank, progress: Progress, who: int, when: int) -> None:
    """Reduce for ever; one rank is killed at a step."""
    for step in range(10_000):
        progress.step = step
        if rank.rank == who and step == when:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))


def pid(rank: Rank, progress: Progress, folder: str) -> None:
    """Leave the process id in a file, then fail on rank 0 while the others wait."""
    with open(os.path.join(folder, str(rank.rank)), "w") as file:
        file.write(str(os.getpid()))
    dist.barrier()
    if rank.rank == 0:
        raise MemoryError("no room")
    dist.barrier()
