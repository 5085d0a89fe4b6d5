"""Several nodes of one training run on this machine's loopback address, which tests kill, stop and start again."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from paralab.processes.with_parent import run_whole, with_parent
from paralab.training.goodput import RunProgress, read_progress

HOST = "127.0.0.1"
POLL_S = 0.05


class LocalNodes:
    """The nodes 0 to count - 1 of one `paralab train`, which goes on with those that are there.

    The run stands in `folder`/run, what node R prints in `folder`/nodeR.txt. Leaving its `with` ends every process.
    """

    def __init__(self, folder: Path, *, count: int, command: Sequence[str], max_restarts: int) -> None:
        self.folder, self.run, self.count = folder, folder / "run", count
        self._command, self._max_restarts = command, max_restarts
        self._launchers: dict[int, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True)

    def __enter__(self) -> "LocalNodes":
        return self

    def __exit__(self, *exception: object) -> None:
        for rank in self._launchers:
            self.kill(rank)

    def start_all(self) -> None:
        """Start the nodes, at a port that is free now."""
        from paralab.nodes.rendezvous import listen

        with listen(HOST, 0) as free:
            self._port = free.getsockname()[1]
        for rank in range(self.count):
            self.start(rank)

    def start(self, rank: int) -> None:
        words = [sys.executable, "-m", "paralab.cli", "node", "--node-rank", str(rank)]
        words += ["--nodes", f"1:{self.count}", "--procs-per-node", "1", "--max-restarts", str(self._max_restarts)]
        words += ["--rendezvous", f"{HOST}:{self._port}", "--", "train", "--out", str(self.run), "--resume"]
        with (self.folder / f"node{rank}.txt").open("ab") as said:
            self._launchers[rank] = subprocess.Popen(
                with_parent([*words, *self._command]),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def kill(self, rank: int) -> None:
        """End every process of a node at once, as a power cut does."""
        launcher = self._launchers[rank]
        processes = self._processes(rank)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes)
        launcher.wait()

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to the launcher of a node."""
        self._launchers[rank].send_signal(number)

    def worker(self, rank: int) -> psutil.Process | None:
        """Return the process that trains on a node; None while there is none."""
        found = [process for process in self._processes(rank) if process.pid != self._launchers[rank].pid]
        return found[0] if found else None

    def _processes(self, rank: int) -> list[psutil.Process]:
        if self._launchers[rank].poll() is not None:
            return []
        try:
            launcher = psutil.Process(self._launchers[rank].pid)
            return [launcher, *launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self, *, timeout_s: float) -> int:
        """Ask all nodes to end, as their users would, and return how many steps were taken.

        Raises: TimeoutError; AssertionError when the run did not end in order.
        """
        for rank in self.running():
            self.signal(rank, signal.SIGTERM)
        wait_until(lambda: not self.running(), timeout_s=timeout_s, what="the end of all nodes")
        now = self.progress()
        assert now is not None and now.ended, f"the run did not end in order: {now}"
        return now.step

    def running(self) -> list[int]:
        """Return the nodes whose launcher has not ended."""
        return [rank for rank, launcher in self._launchers.items() if launcher.poll() is None]

    def progress(self) -> RunProgress | None:
        return read_progress(self.run)

    def steps_with(self, processes: int) -> int:
        """Return how far the run is when that many processes train, otherwise -1."""
        now = self.progress()
        return now.step if now is not None and now.processes == processes and not now.ended else -1

    def await_steps(self, more: int, *, processes: int, timeout_s: float) -> int:
        """Return how far the run is when that many processes have taken so many steps more. Raises: TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        first = None
        while True:
            step = self.steps_with(processes)
            first = step if first is None and step >= 0 else first
            if first is not None and step >= first + more:
                return step
            wait(deadline_s, f"{more} steps of {processes} processes in {timeout_s:g} s, which came to {step}")


def wait(deadline_s: float, what: str) -> None:
    """Sleep a moment. Raises: TimeoutError after the deadline, on the clock of time.monotonic()."""
    if time.monotonic() > deadline_s:
        raise TimeoutError(f"waited in vain for {what}")
    time.sleep(POLL_S)


def wait_until(condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
    """Return when the condition holds. Raises: TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        wait(deadline_s, f"{what} in {timeout_s:g} s")


def train_alone(folder: Path, *words: str) -> None:
    """Train in one process that nothing disturbs. Raises: RuntimeError with what it printed when it fails."""
    command = [sys.executable, "-m", "paralab.cli", "train", "--out", str(folder), "--strategy", "single", *words]
    done = run_whole(command)
    if done.returncode:
        raise RuntimeError(f"the run without faults failed: {done.stderr[-1000:]}")
