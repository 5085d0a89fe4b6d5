"""Run a task in the processes of a run: the ones a launcher started, of which this is one, or new local ones.

A task is `module:function`, called as function(rank, progress, *args) in every process. Local processes are
started by torch's elastic launcher.
"""

import importlib
import logging
import multiprocessing
import os
import signal
from typing import Any
from uuid import uuid4

import torch

from parallel import cluster
from parallel.cluster import Rank
from parallel.errors import RankError, WorldError
from parallel.failure import VICTIM_EXIT_STATUS, Progress, guard

# Imported once, by the server that all local processes are forked from.
_PRELOADED = ["torch.distributed.tensor", "parallel.case", "benchmarks.worker"]


def launch(task: str, *args: Any, nproc: int, threads: int | None = None, backend: str | None = None) -> Any:
    """Return what rank 0 returned (in a process that a launcher started: what this rank returned).

    Raises: WorldError when a launcher started another number of processes; RankError when a rank failed, which
    that rank has said already.
    """
    rank = Rank.from_env()
    if rank.launcher != "python":
        check_started(rank, nproc)
    if rank.launcher != "python" or nproc == 1:
        return _work(task, args, threads, backend)
    return _start_local(task, args, threads, backend, nproc=nproc)


def check_started(rank: Rank, nproc: int) -> None:
    """Raise WorldError unless the launcher started the number of processes that is needed."""
    if rank.world_size != nproc:
        line = cluster.start_line(rank.launcher, nproc, gpus=torch.cuda.is_available())
        raise WorldError(f"{rank.launcher} started {rank.world_size} process(es), {nproc} needed: type {line}")


def _start_local(task: str, args: tuple, threads: int | None, backend: str | None, *, nproc: int) -> Any:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(threads or cluster.default_threads(nproc)))
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the failed rank says it in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
    )
    multiprocessing.set_forkserver_preload(_PRELOADED)
    try:
        return elastic_launch(config, _work)(task, args, threads, backend)[0]
    except ChildFailedError as error:
        raise _said(error.failures) from None
    except SignalException as error:  # the launcher has ended the processes
        raise SystemExit(128 + error.sigval) from None  # as a shell reports a signal


def _said(failures: dict) -> RankError:
    """Return the error for a failure that a rank has reported, or for one that was killed and could not."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
    if killed:
        name = signal.Signals(-codes[killed[0]]).name
        return RankError(f"rank {killed[0]} was ended by {name}: if nobody sent it, look for the system out of memory")
    own = [code for code in codes.values() if code > 0 and code != VICTIM_EXIT_STATUS]
    said = RankError("")
    said.exit_status = own[0] if own else 1
    return said


def _work(task: str, args: tuple, threads: int | None, backend: str | None) -> Any:
    rank, progress = Rank.from_env(), Progress()
    with guard(rank, progress):
        cluster.join(rank, threads=threads, backend=backend)
        module, _, name = task.partition(":")
        value = getattr(importlib.import_module(module), name)(rank, progress, *args)
    cluster.leave()
    return value
