"""The processes of one run meet, and part: `join` makes their process group, `leave` closes it.

Elsewhere: `rank` reads which rank this process is, `mesh` makes the groups of the axes, `meeting` finds where the
ranks of Slurm and MPI meet, `launch` starts the processes of this machine, and checkpoints, the training loop and the
engines of others make further groups of ranks that have met.
"""

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from paralab.errors import WorldError
from paralab.processes import meeting
from paralab.processes.allowed import default_threads
from paralab.processes.at_exit import wait_for_gloo
from paralab.processes.glibc import keep_pages
from paralab.processes.interfaces import check_interface
from paralab.processes.liveness import Liveness
from paralab.processes.mesh import default_backend, forget_meshes
from paralab.processes.rank import Rank

_HEARS_S = 0.1  # a signal waits as long at most
T = TypeVar("T")


def join(
    rank: Rank,
    *,
    threads: int | None = None,
    backend: str | None = None,
    init_method: str = "env://",
    timeout_s: float = 1800.0,
    recordings: Path | None = None,
) -> None:
    """Prepare this process and meet the others. `leave` undoes it.

    timeout_s: how long a rank waits for another one, now and in every collective. recordings: compare what the ranks
    call in every collective, and write flight recordings there when the run fails. Raises: WorldError.
    """
    global _liveness, _joined
    keep_pages(rank.local_world_size)
    torch.set_num_threads(threads or default_threads(rank.local_world_size))
    if rank.device.type == "cuda":
        torch.cuda.set_device(rank.device)
    if rank.world_size == 1:
        return
    timeout = timedelta(seconds=timeout_s)
    # new groups do not take over the timeout of the first one
    dist.distributed_c10d.default_pg_timeout = dist.distributed_c10d.default_pg_nccl_timeout = timeout
    if recordings is not None:
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives that are kept
        dist.set_debug_level(dist.DebugLevel.DETAIL)
    if dist.get_debug_level() == dist.DebugLevel.DETAIL:  # or by TORCH_DISTRIBUTED_DEBUG
        # DDP's own statistics end in a segmentation fault with gloo then (torch 2.13)
        dist.Logger.set_construction_data_and_log = lambda *facts: None  # type: ignore[method-assign]
    check_interface(os.environ)
    if init_method == "env://" and rank.launcher in ("slurm", "mpi"):
        alone_here = rank.local_told and rank.local_world_size == rank.world_size
        os.environ.update(meeting.meeting_point(os.environ, launcher=rank.launcher, on_one_machine=alone_here))
    if init_method == "env://":
        meeting.check_meeting_point(os.environ)
    try:
        store, _, _ = hearing(lambda: next(dist.rendezvous(init_method, rank.rank, rank.world_size, timeout=timeout)))
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise WorldError(
            f"the {rank.world_size} ranks have not met at {where}: {str(error).splitlines()[0]}: start all of them,"
            " check MASTER_ADDR, take another MASTER_PORT if it is in use, or raise --timeout-s"
        ) from error
    if _joined or rank.attempt:  # keys of an earlier meeting are still in the store of a launcher
        store = dist.PrefixStore(f"start {rank.attempt} meeting {_joined}", store)
    _joined += 1
    _liveness = Liveness(store, rank.rank, rank.world_size, recordings=recordings)
    _liveness.join(timeout_s)
    backend = backend or default_backend(rank.device.type)
    wait_for_gloo()
    store = dist.PrefixStore("default_pg", store)
    dist.init_process_group(backend, store=store, rank=rank.rank, world_size=rank.world_size, timeout=timeout)


def hearing(wait: Callable[[], T]) -> T:
    """Return what a call returns that waits for other ranks, or raise what it raises; signals are heard meanwhile.

    torch waits in C++, where Python does not get to its handlers: so another thread does.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(wait())
        except BaseException as error:  # for the thread that asked
            raised.append(error)

    waiting = threading.Thread(target=run, daemon=True)
    waiting.start()
    while waiting.is_alive():
        waiting.join(_HEARS_S)
    if raised:
        raise raised[0]
    return returned[0]


_liveness: Liveness | None = None
_joined = 0  # how often this process has met the others


def liveness() -> Liveness | None:
    """Return the liveness of the ranks that this process has joined; None alone."""
    return _liveness


def leave() -> None:
    """Close the process groups; gloo aborts at exit without it."""
    global _liveness
    forget_meshes()
    if _liveness is not None:
        _liveness.mark("left")
        _liveness = None
    if dist.is_initialized():
        dist.destroy_process_group()
