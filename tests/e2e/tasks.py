"""What ranks do besides `paralab`'s own tasks: `launch N TASK ARG...` of tests/e2e/faults.py."""

import json
import os
import signal

import psutil
import torch
import torch.distributed as dist

from paralab.processes.failure import Progress
from paralab.processes.rank import Rank


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
    with open(os.path.join(folder, f"pid{rank.rank}"), "w") as file:
        file.write(str(os.getpid()))
    dist.barrier()
    if rank.rank == 0:
        raise MemoryError("no room")
    dist.barrier()


def listening(rank: Rank, progress: Progress, file: str) -> None:
    """Write the addresses on which the processes of this run accept connections, while all are connected."""
    dist.all_reduce(torch.ones(1))
    if rank.rank == 0:
        run = [process for process in psutil.Process().parents() if "tests.e2e.faults" in process.cmdline()][-1]
        processes = [run, *run.children(recursive=True)]
        sockets = [socket for process in processes for socket in process.net_connections("inet")]
        addresses = [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]
        with open(file, "w") as out:
            json.dump({"processes": len(processes), "addresses": addresses}, out)
    dist.barrier()
