"""Run a task in the processes of a run: the ones a launcher started, of which this is one, or new local ones.

A task is `module:function`, called as function(rank, progress, *args) in every process. Local processes are
started by torch's elastic launcher.
"""

import importlib
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from parallel import cluster
from parallel.cluster import Rank
from parallel.config import RunConfig
from parallel.errors import RankError, WorldError
from parallel.failure import VICTIM_EXIT_STATUS, Failure, Progress, end_with, guard, heed_alarm, stopping
from parallel.measure.oom_killer import OomKiller
from parallel.nodes import standby
from parallel.nodes.rendezvous import interface_of

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


def launch(
    task: str,
    *args: Any,
    nproc: int,
    config: RunConfig | None = None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Any:
    """Return what rank 0 returned (in a process that a launcher started: what this rank returned).

    config: how the processes meet; by default as `cluster.join` has it.
    on_failure: called when the processes of a launcher fail before the task begins: by the first that does so, or by
    rank 0 where they have not met.
    Raises: WorldError when a launcher started another number of processes; RankError when a rank failed, which
    that rank has said already.

    Where nodes come and go there may be more processes than needed: those left over wait for the others to finish.
    """
    rank = Rank.from_env()
    if rank.elastic and rank.world_size > nproc:
        return _work_beside_others(task, args, config, rank=rank, nproc=nproc, on_failure=on_failure)
    if rank.launcher != "python":
        check_started(rank, nproc)
    if rank.launcher != "python" or nproc == 1:
        if rank.world_size == 1:  # what it raises, its task has told
            return _work(task, args, config, None)
        return _work(task, args, config, os.getppid(), on_failure=on_failure)
    return _start_local(task, args, config, nproc=nproc)


def check_started(rank: Rank, nproc: int) -> None:
    """Raise WorldError unless the launcher started the number of processes that is needed."""
    if rank.world_size != nproc:
        line = cluster.start_line(rank.launcher, nproc, gpus=torch.cuda.is_available())
        raise WorldError(f"{rank.launcher} started {rank.world_size} process(es), {nproc} needed: type {line}")


def _work_beside_others(
    task: str,
    args: tuple,
    config: RunConfig | None,
    *,
    rank: Rank,
    nproc: int,
    on_failure: Callable[[Failure], None],
) -> Any:
    if rank.rank >= nproc:
        return standby.stand_by()
    value = _work(task, args, config, os.getppid(), rank=replace(rank, world_size=nproc), on_failure=on_failure)
    if rank.is_main:
        standby.release()
    return value


def _start_local(task: str, args: tuple, config: RunConfig | None, *, nproc: int) -> Any:
    """Start processes that meet in files and talk over the loopback interface: no port is open to other machines."""
    with TemporaryDirectory(prefix="paralab-") as folder:
        return _start_in(folder, task, args, config, nproc=nproc)


def _start_in(folder: str, task: str, args: tuple, config: RunConfig | None, *, nproc: int) -> Any:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    oom_killer = OomKiller()
    threads = config.threads if config is not None else None
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or cluster.default_threads(nproc)))
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the failed rank says it in one line
    interface = interface_of("127.0.0.1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # otherwise torch's launcher listens on every interface
    local = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{folder}/launcher",
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    # imported once, by what all are forked from; every optimizer brings the compiler along
    multiprocessing.set_forkserver_preload([task.partition(":")[0], "torch._dynamo"])
    try:
        return elastic_launch(local, _work)(task, args, config, os.getpid(), f"file://{folder}/ranks")[0]
    except ChildFailedError as error:
        raise _said(error.failures, Path(folder), oom_killer) from None
    except SignalException as error:  # the launcher has ended the processes
        raise SystemExit(128 + error.sigval) from None  # as a shell reports a signal


def _said(failures: Mapping[int, "ProcessFailure"], folder: Path, oom_killer: OomKiller) -> RankError:
    """Return the error for a failure that a rank has reported, or for one that nobody was left to report."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    own = [code for code in codes.values() if code > 0 and code != VICTIM_EXIT_STATUS]
    error = RankError("")
    error.exit_status = own[0] if own else 1
    for file in folder.rglob("error.json"):
        told = json.loads(file.read_text())["message"]
        error.reason, error.exit_status = told["message"], told["errorCode"]
        return error
    for rank, code in sorted(codes.items(), key=lambda item: item[1] != -signal.SIGKILL):  # SIGTERM is for victims
        if code < 0:
            memory = f" {oom_killer.BLAME}" if code == -signal.SIGKILL and oom_killer.has_struck else ""
            return RankError(f"rank {rank} was ended by {signal.Signals(-code).name}{memory}")
    return error


def _work(
    task: str,
    args: tuple,
    config: RunConfig | None,
    launcher: int | None,
    meeting: str = "env://",
    *,
    rank: Rank | None = None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Any:
    """Do the task as one rank. launcher: the process whose end is this one's too. meeting: where ranks find the store.

    rank: which one, by default what the environment says.
    """
    rank, progress = rank or Rank.from_env(), Progress()
    if launcher is not None:
        end_with(launcher)
    heed_alarm(rank, progress)

    def on_first(failure: Failure) -> None:
        if cluster.roll() is not None or rank.is_main:
            on_failure(failure)

    with stopping(), guard(rank, progress, on_first):
        cluster.join(rank, init_method=meeting, **_joining(config))
        module, _, name = task.partition(":")
        value = getattr(importlib.import_module(module), name)(rank, progress, *args)
    cluster.leave()
    return value


def _joining(config: RunConfig | None) -> dict[str, Any]:
    if config is None:
        return {}
    recordings = Path(config.debug_collectives) if config.debug_collectives else None
    options = {"threads": config.threads, "backend": config.backend, "timeout_s": config.timeout_s}
    return options | {"recordings": recordings}
