"""A pool of gloo processes that stay alive between cases: starting it costs seconds, a case well under one."""

import gc
import importlib
import os
import queue
import resource
import tempfile
import traceback
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp


class Failed(AssertionError):
    """A case raised on some ranks; the message holds their stack traces."""


# Each process group holds a connection to every other rank, and two threads.
MOST_GROUPS = 400


class WorkerPool:
    """Processes of one gloo world. `run("module:function", *args)` calls function(rank, *args) in each of them.

    The pool is started again after a failure, since ranks may be left inside a collective, and when its ranks have
    more than MOST_GROUPS process groups.
    """

    # modules that are imported once, not by each of the processes; conftest.py adds to them
    imported: tuple[str, ...] = (
        *("paralab.benchmarks.case.run", "tests.dist.library_cases", "tests.tiny", "torch._dynamo"),
        *("paralab.axes.pipeline.rules", "torch.distributed.pipelining.schedules", "torch.profiler._cupti_monitor"),
    )

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._start()

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(list(self.imported))
        self.folder = tempfile.TemporaryDirectory()
        self.inboxes = [context.SimpleQueue() for _ in range(self.world_size)]
        self.outbox = context.Queue()
        store = os.path.join(self.folder.name, "store")
        self.processes = [
            context.Process(
                target=_work, args=(rank, self.world_size, store, self.inboxes[rank], self.outbox), daemon=True
            )
            for rank in range(self.world_size)
        ]
        for process in self.processes:
            process.start()

    def run(self, target: str, *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """Return what each rank returned. Raises: Failed; TimeoutError when a rank does not answer."""
        for inbox in self.inboxes:
            inbox.put((target, args))
        answers: dict[int, Any] = {}
        groups: dict[int, int] = {}
        errors: dict[int, str] = {}
        try:
            while len(answers) + len(errors) < self.world_size:
                # Once one rank has failed the others may be waiting for it: give them a moment, not the full time.
                rank, ok, value, groups[rank] = self.outbox.get(timeout=5.0 if errors else timeout_s)
                (answers if ok else errors)[rank] = value
        except queue.Empty as error:
            if not errors:
                missing = sorted(set(range(self.world_size)) - answers.keys())
                self._restart()
                raise TimeoutError(f"{target}: ranks {missing} did not answer within {timeout_s} s") from error
        except BaseException:  # such as the time limit of a test: the ranks' answers would be taken for the next one's
            self._restart()
            raise
        if errors:
            self._restart()
            raise Failed("\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(errors.items())))
        if max(groups.values()) > MOST_GROUPS:
            self._restart()
        return [answers[rank] for rank in range(self.world_size)]

    def _restart(self) -> None:
        self.close(kill=True)
        self._start()

    def close(self, *, kill: bool = False) -> None:
        for process, inbox in zip(self.processes, self.inboxes, strict=True):
            if kill:
                process.kill()
            else:
                inbox.put(None)
        for process in self.processes:
            process.join(timeout=20)
            if process.is_alive():
                process.kill()
        self.folder.cleanup()


def groups() -> int:
    """Return how many process groups this process has."""
    return len(dist.distributed_c10d._world.pg_map)


def share_one_device() -> None:
    """Give all process groups of this process one gloo device, and room for their connections.

    By default each makes its own, with a thread that wakes a hundred times a second: with a hundred groups in each of
    eight processes a case takes five times as long.
    """
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    create, device = dist.ProcessGroupGloo.__init__, dist.ProcessGroupGloo.create_default_device()

    def __init__(
        group: dist.ProcessGroupGloo, store: dist.Store, rank: int, size: int, timeout: timedelta, **_: bool
    ) -> None:  # torch 2.14 passes a further argument, which says that the group keeps its ranks
        options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices, options._timeout = [device], timeout
        create(group, store, rank, size, options)

    dist.ProcessGroupGloo.__init__ = __init__  # type: ignore[method-assign, assignment]


def _work(rank: int, world_size: int, store: str, inbox: Any, outbox: Any) -> None:
    from paralab.processes import cluster
    from paralab.processes.rank import Rank

    share_one_device()
    gc.freeze()
    gc.set_threshold(700, 10, 100)
    me = Rank(rank, world_size, rank, world_size, "python")
    cluster.join(me, threads=1, init_method=f"file://{store}")
    while (task := inbox.get()) is not None:
        target, args = task
        module, _, name = target.partition(":")
        try:
            value = getattr(importlib.import_module(module), name)(me, *args)
            outbox.put((rank, True, value, groups()))
        except BaseException:
            outbox.put((rank, False, traceback.format_exc(), groups()))
    cluster.leave()
