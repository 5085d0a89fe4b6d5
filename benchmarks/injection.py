"""Faults that are injected into a training run on three nodes, and how it recovers from each."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from paralab.benchmarks.elastic import START_S
from paralab.benchmarks.local_nodes import LocalNodes, wait, wait_until
from paralab.training.goodput import RunProgress

NODES = 3
GO_ON_STEPS = 3  # steps of all nodes after which a run has recovered from a fault


@dataclass(frozen=True)
class Recovery:
    """One fault and the recovery from it. steps_again: those repeated from the last checkpoint on."""

    at_s: float
    step: int
    kind: str
    fault: str
    restarts: int
    steps_again: int
    recovery_s: float
    said: str

    def cells(self) -> list[str]:
        at = f"{int(self.at_s) // 60}:{int(self.at_s) % 60:02d}"
        took = f"{self.recovery_s:.0f} s"
        return [at, str(self.step), self.fault, str(self.restarts), str(self.steps_again), took, self.said]


class Soak:
    """A training run into which faults are injected."""

    def __init__(self, nodes: LocalNodes, *, seed: int, pause_s: float) -> None:
        self.nodes, self.pause_s = nodes, pause_s
        self.chance = random.Random(seed)
        self.began_s = time.monotonic()
        self.faults: list[tuple[str, Callable[[int], None]]] = [
            ("SIGKILL of the rank on node {}", self.kill_rank),
            ("SIGSTOP of the rank on node {}, SIGCONT {:.1f} s later", self.stop_rank),
            ("SIGTERM of the launcher of node {}", self.end_launcher),
            ("a byte of the newest checkpoint changed, SIGKILL of the rank on node {}", self.damage),
            ("SIGKILL of all processes of node {}", self.nodes.kill),
        ]

    def run(self, *, minutes: float) -> Iterator[Recovery]:
        """Yield each fault when the run has recovered from it. Raises: TimeoutError when it does not."""
        self.nodes.start_all()
        self.nodes.await_steps(GO_ON_STEPS, processes=NODES, timeout_s=START_S)
        self.began_s = time.monotonic()
        bag: list[tuple[str, Callable[[int], None]]] = []
        while time.monotonic() < self.began_s + 60 * minutes:
            bag = bag or self.chance.sample(self.faults, len(self.faults))  # each one as often as the others
            time.sleep(self.chance.uniform(0.5, 1.5) * self.pause_s)
            yield self._inject(*bag.pop())

    def _inject(self, name: str, fault: Callable[[int], None]) -> Recovery:
        node, self.stop_s = self.chance.randrange(NODES), self.chance.uniform(1, 5)
        before, heard = self._now(), self._said_bytes()
        injected_s = time.monotonic()
        fault(node)
        self._recover(before, timeout_s=2 * START_S)
        recovery_s = time.monotonic() - injected_s
        after = self._now()
        same = after.began_at == before.began_at  # otherwise counted anew, after an end in order
        return Recovery(
            at_s=injected_s - self.began_s,
            step=before.step,
            kind=name.split(" on node")[0].split(" of node")[0],
            fault=name.format(node, self.stop_s),
            restarts=after.restarts - before.restarts if same else after.restarts + 1,
            steps_again=after.steps_lost - before.steps_lost if same else after.steps_lost,
            recovery_s=recovery_s,
            said=self._said_since(heard),
        )

    def _now(self) -> RunProgress:
        while (now := self.nodes.progress()) is None:  # being written
            time.sleep(0.01)
        return now

    def _recover(self, before: RunProgress, *, timeout_s: float) -> None:
        """Restart what has ended until all nodes take steps again. Raises: TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        time.sleep(1.0)  # for the fault to show
        first: tuple[RunProgress, int] | None = None  # a start on all nodes, and its step when it was first seen
        while True:
            self._start_ended()
            now = self.nodes.progress()
            if now is not None and now.processes == NODES and not now.ended and len(self.nodes.running()) == NODES:
                start = (now.began_at, now.restarts)
                if first is None or start != (first[0].began_at, first[0].restarts):
                    first = now, now.step
                if now.step >= first[1] + GO_ON_STEPS:
                    return
            wait(deadline_s, f"steps on {NODES} nodes, {timeout_s:g} s after a fault at step {before.step}")

    def _start_ended(self) -> None:
        running = self.nodes.running()
        if 0 not in running:  # it hosts the rendezvous: all end, and all start anew
            deadline_s = time.monotonic() + START_S
            while self.nodes.running():
                wait(deadline_s, "the end of the nodes that have lost node 0")
            self.nodes.start_all()
            return
        ended = [node for node in range(NODES) if node not in running]
        if ended:
            time.sleep(self.chance.uniform(0.5, 1.5) * self.pause_s)
            for node in ended:
                if 0 in self.nodes.running():
                    self.nodes.start(node)

    def kill_rank(self, node: int) -> None:
        if worker := self.nodes.worker(node):
            worker.kill()

    def stop_rank(self, node: int) -> None:
        if worker := self.nodes.worker(node):
            with suppress(psutil.NoSuchProcess):
                worker.suspend()
                time.sleep(self.stop_s)
                worker.resume()

    def end_launcher(self, node: int) -> None:
        self.nodes.signal(node, signal.SIGTERM)

    def damage(self, node: int) -> None:
        # of a single checkpoint nothing would be left, and a run refuses to start again from zero
        wait_until(lambda: len(self._checkpoints()) > 1, timeout_s=START_S, what="a second checkpoint")
        newest = self.nodes.run / (self.nodes.run / "latest").read_text().strip()
        with suppress(FileNotFoundError):  # replaced by a newer one this very moment
            file = self.chance.choice(sorted(newest.glob("*.safetensors")))
            content = bytearray(file.read_bytes())
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            file.write_bytes(content)
        self.kill_rank(node)

    def _checkpoints(self) -> list[Path]:
        return [path for path in self.nodes.run.glob("step-*") if path.suffix == ""]

    def _said_bytes(self) -> list[int]:
        return [file.stat().st_size for file in self._files()]

    def _files(self) -> list[Path]:
        return [self.nodes.folder / f"node{node}.txt" for node in range(NODES)]

    def _said_since(self, heard: list[int]) -> str:
        """Return where a start fell back to, when it had to pass over a damaged checkpoint."""
        files = zip(self._files(), heard, strict=True)
        lines = "".join(file.read_bytes()[n:].decode(errors="replace") for file, n in files).splitlines()
        falls = [line.rpartition("; ")[2] for line in lines if "damaged" in line and "; taking step-" in line]
        return f"damaged, {falls[0]}" if falls else ""
