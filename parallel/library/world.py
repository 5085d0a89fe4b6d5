"""The processes of a program, whatever started them: torchrun, deepspeed, accelerate, Slurm, MPI or Python alone."""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from paralab.errors import ParalabError
from paralab.processes import cluster
from paralab.processes.at_exit import wait_for_gloo
from paralab.processes.failure import Progress, guard
from paralab.processes.rank import Rank


@dataclass(frozen=True)
class World:
    """The processes that have met, as this one sees them.

    rank: its number, from 0. size: how many there are. device: where its tensors belong.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which says what is to be said once."""
        return self.rank == 0

    def print(self, *values: object) -> None:
        """Print on rank 0 alone."""
        if self.is_main:
            print(*values, flush=True)


@contextlib.contextmanager
def join(*, threads: int | None = None, backend: str | None = None, timeout_s: float = 1800.0) -> Iterator[World]:
    """Meet the other processes of the program, and part from them at the end of the `with`.

    A program that torchrun, deepspeed, accelerate, srun or mpirun has started meets the others; one that was started as
    `python program.py` is alone. Processes that have made torch's process group themselves keep it. Where a rank fails,
    the others end as well, and one line says which rank it was.

    threads: CPU threads of this process (by default the cores, divided among those of this machine). backend: "gloo" or
    "nccl" (by default nccl on GPUs). timeout_s: seconds that a rank waits for another one.
    Raises: WorldError where the processes have not met.
    """
    if dist.is_initialized():  # the program has met already, and parts as it likes
        wait_for_gloo()
        device = Rank.from_env().device
        yield World(dist.get_rank(), dist.get_world_size(), device)
        return
    rank = Rank.from_env()
    cluster.join(rank, threads=threads, backend=backend, timeout_s=timeout_s)
    world = World(rank.rank, rank.world_size, rank.device)
    try:
        if rank.world_size == 1:
            yield world
        else:
            with guard(rank, Progress()), _shown():
                yield world
    finally:
        cluster.leave()


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Print where an error comes from, before it becomes one line: a program has places that are worth knowing."""
    try:
        yield
    except ParalabError:
        raise
    except Exception:
        traceback.print_exc()
        raise
