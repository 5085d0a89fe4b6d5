"""Run a task in the processes of a run: those that a launcher started, including this one, or new local ones.

A task is `module:function`, called as function(rank, progress, *args) in every process. Local processes are
started by torch's elastic launcher.
"""

import contextlib
import importlib
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from paralab.console import streams
from paralab.console.signals import SAME_SIGNAL_S
from paralab.errors import VICTIM_EXIT_STATUS, RankError, WorldError
from paralab.options.config import RunConfig
from paralab.processes import cluster, fork_server, standby
from paralab.processes.allowed import check_processes_fit, default_threads
from paralab.processes.failure import Failure, Progress, guard, heed_alarm, stopping
from paralab.processes.interfaces import check_interface, interface_of
from paralab.processes.oom_killer import OomKiller
from paralab.processes.rank import Rank, is_set_by_hand, start_line
from paralab.processes.with_parent import end_with

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure


_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes of sockaddr_un.sun_path, unix(7), without its end
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # those that torch's launcher hears
_AGAIN_S = 0.1  # until a signal that came too early is tried again
_LOST_EXIT_STATUS = 255  # what multiprocessing says of a process whose fork server has ended


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
        line = start_line(rank.launcher, nproc, gpus=torch.cuda.is_available())
        if is_set_by_hand():
            raise WorldError(
                f"RANK and WORLD_SIZE={rank.world_size} are set, {nproc} processes needed: type env -u RANK -u "
                f"WORLD_SIZE before the command to have them started by itself, or {line}"
            )
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
    if config is None or not config.force:
        check_processes_fit(nproc)
    _check_sockets_fit()
    check_interface(os.environ)
    with TemporaryDirectory(prefix="paralab-") as folder:
        return _start_in(folder, task, args, config, nproc=nproc)


def _start_in(folder: str, task: str, args: tuple, config: RunConfig | None, *, nproc: int) -> Any:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    oom_killer = OomKiller()
    threads = config.threads if config is not None else None
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or default_threads(nproc)))
    elastic = "torch.distributed.elastic"  # its modules set a level each
    for name in (elastic, f"{elastic}.agent.server.api", f"{elastic}.multiprocessing.api", "torch.multiprocessing"):
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
        signals_to_handle="",  # `_signals_between_starts` does
    )
    # imported once, by what all are forked from; every optimizer brings the compiler along
    multiprocessing.set_forkserver_preload([task.partition(":")[0], "torch._dynamo"])
    try:
        fork_server.start()
        with _signals_between_starts():
            return elastic_launch(local, _work)(task, args, config, os.getpid(), f"file://{folder}/ranks")[0]
    except ChildFailedError as error:
        raise _said(error.failures, Path(folder), oom_killer) from None
    except (ConnectionError, EOFError) as error:  # of Python's fork server
        raise RankError(
            f"the process that starts the ranks has ended, as when it is killed ({type(error).__name__})"
        ) from None
    except SignalException as error:  # the launcher has ended the processes
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None  # as a shell reports a signal


def _check_sockets_fit() -> None:
    """Raise WorldError where the folder for temporary files has too long a path for the sockets that lie in it."""
    folder = tempfile.gettempdir()
    longest = _SOCKET_PATH - len("/pymp-01234567/listener-01234567")  # as multiprocessing names them
    if len(os.fsencode(folder)) > longest:
        raise WorldError(
            f"temporary files go to a path of {len(os.fsencode(folder))} bytes, and sockets there need one of at most"
            f" {longest}: type TMPDIR=/tmp before the command"
        )


@contextlib.contextmanager
def _signals_between_starts() -> Iterator[None]:
    """Raise what torch's launcher ends all processes on, but not while it starts them.

    It would leave alone the one that it has started and does not know yet, which then misses what it should be told.
    Nor a second time for the same signal: it would no longer wait for processes that are leaving their row.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    heard_s = -math.inf

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard_s
        if _starts_processes(frame):
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()
        elif time.monotonic() - heard_s > SAME_SIGNAL_S:
            heard_s = time.monotonic()
            raise SignalException(f"signal {number}", sigval=signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():  # no other hears signals
        yield
        return
    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _starts_processes(frame: FrameType | None) -> bool:
    """Return whether torch's launcher is about to start processes, and not to watch them."""
    while frame is not None and frame.f_code.co_name != "_start_workers":
        frame = frame.f_back
    return frame is not None


def _said(failures: Mapping[int, "ProcessFailure"], folder: Path, oom_killer: OomKiller) -> RankError:
    """Return the error for a failure that a rank has reported, or for one that nobody was left to report."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    own = [code for code in codes.values() if code > 0 and code != VICTIM_EXIT_STATUS]
    error = RankError("")
    error.exit_status = own[0] if own else 1
    for file in folder.rglob("error.json"):
        told = json.loads(file.read_text())["message"]
        if "errorCode" not in told:  # written by torch, of what went wrong before or after the task
            return RankError(f"a rank failed outside of its work: {told['message']}")
        error.reason, error.exit_status = told["message"], told["errorCode"]
        return error
    if codes and all(code == _LOST_EXIT_STATUS for code in codes.values()):
        return RankError("the process that starts the ranks has ended, as when it is killed")
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
        if cluster.liveness() is not None or rank.is_main:
            on_failure(failure)

    streams.keep_open()
    with stopping(launcher_tells=meeting != "env://"), guard(rank, progress, on_first):
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
