"""Faults for real runs: `python -m tests.e2e.faults` reads requests, runs each as a command, with a fault in one rank.

A request is a line of JSON: {"words": [...], "fault": NAME, "who": RANK, "when": STEP}; the answer one with the exit
status. Starting a process for each request would take longer than the run.
"""

import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from paralab import cli
from paralab.benchmarks.case import run as case
from paralab.checkpoint.storage import Writer
from paralab.data.dataset import Batch
from paralab.engines.engine import StepResult
from paralab.engines.native import NativeEngine
from paralab.processes.failure import Progress
from paralab.processes.launch import launch
from paralab.processes.rank import Rank
from paralab.running import task as running
from paralab.training import loop as training


def fail() -> None:
    raise ValueError("sample 17 is not an image")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def run_on() -> None:
    """Do something else for ever."""
    while True:
        time.sleep(0.1)


def ask_for_memory() -> None:
    """Ask for a pebibyte."""
    torch.empty(1 << 50, dtype=torch.uint8)


def use_up_memory() -> None:
    """Take more than the limit of a control group of its own."""
    group = memory_group(f"paralab-test-{os.getpid()}")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    for name in ("memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if (group / name).exists():
            (group / name).write_text(str(64 << 20))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")
    torch.ones(1 << 30, dtype=torch.uint8)


def memory_group(name: str) -> Path:
    """Make a control group with a limit of memory beside this process's own. Raises: OSError where that is refused."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = {"memory": "/sys/fs/cgroup/memory", "": "/sys/fs/cgroup"}.get(controllers)
        if root is None:
            continue
        group = Path(root + path) / name
        group.mkdir()
        if any((group / file).exists() for file in ("memory.max", "memory.limit_in_bytes")):
            return group
        group.rmdir()
    raise OSError("no control group limits memory here")


def call_another() -> None:
    dist.all_gather([torch.zeros(3) for _ in range(dist.get_world_size())], torch.zeros(3))


def give_another_shape() -> None:
    dist.all_reduce(torch.zeros(7))


BEFORE_A_STEP: dict[str, Callable[[], None]] = {
    function.__name__: function for function in (fail, kill, stop, run_on, ask_for_memory, use_up_memory, call_another)
} | {"give_another_shape": give_another_shape}


def do(rank: Rank, progress: Progress, task: str, folder: str, fault: str, who: int, when: int, *args: Any) -> Any:
    """Do a task; the fault happens on rank `who` at step `when`, and the time of it is left in the folder."""
    (Path(folder) / f"pid{rank.rank}").write_text(str(os.getpid()))
    if rank.rank == who:
        _prepare(fault, when, lambda: _note(Path(folder)))
    module, _, name = task.partition(":")
    return getattr(importlib.import_module(module), name)(rank, progress, *args)


NAP_S = 1.0  # of a rank that is slow on purpose, in each step: more than a busy machine makes of a step


def _naps(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        time.sleep(NAP_S)
        yield batch


def _note(folder: Path) -> None:
    (folder / "happened").write_text(str(time.time()))


def _prepare(fault: str, when: int, note: Callable[[], None]) -> None:
    take, write, batches = NativeEngine.step, Writer.write_data, training.training_batches

    def step(engine: NativeEngine, batch: Batch) -> StepResult:
        if engine.steps_done == when:
            note()
            if fault == "nan":
                with torch.no_grad():
                    next(engine.parts[0].parameters()).fill_(float("nan"))
            BEFORE_A_STEP.get(fault, lambda: None)()
        return take(engine, batch)

    def write_data(writer: Writer, *plan: Any) -> Any:
        done = write(writer, *plan)
        if writer.facts.step == when and fault == "kill_while_saving":
            note()
            kill()
        return done

    def fewer_batches(*args: Any, **options: Any) -> Iterator[Batch]:
        yield from islice(batches(*args, **options), when)
        note()

    def slowly(engine: NativeEngine, batch: Batch) -> StepResult:
        time.sleep(NAP_S * (engine.steps_done >= when))
        return take(engine, batch)

    if fault == "slow_data":
        load = case.training_batches
        case.training_batches = lambda *args, **options: _naps(load(*args, **options))
    if fault == "slow_compute":
        step = slowly
    NativeEngine.step, Writer.write_data = step, write_data  # type: ignore[method-assign, assignment]
    if fault == "fewer_batches":
        training.training_batches = fewer_batches
    if fault == "fill_disk":
        shutil.disk_usage = lambda path: SimpleNamespace(free=1 << 40)  # type: ignore[assignment, return-value]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def answer(request: dict[str, Any]) -> int:
    """Run the command of a request with its fault; return the exit status."""
    was, fault = running.launch, [request[key] for key in ("folder", "fault", "who", "when")]
    running.launch = lambda task, *args, **options: was("tests.e2e.faults:do", task, *fault, *args, **options)
    try:
        return cli.main(request["words"])
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        running.launch = was


def start(words: list[str]) -> int:
    """Do a task of tests/e2e/tasks.py: the number of ranks, its name, and its arguments."""
    nproc, task, *args = words
    launch(f"tests.e2e.tasks:{task}", *[int(arg) if arg.isdigit() else arg for arg in args], nproc=int(nproc))
    return 0


if __name__ == "__main__":
    cli.TARGETS["launch"] = "__main__:start"
    for line in sys.stdin:
        print(json.dumps({"exit_status": answer(json.loads(line))}), flush=True)
