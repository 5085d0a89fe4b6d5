"""Inject random faults into a training run for a long time, and check that nothing is lost.

    paralab soak --minutes 120 --seed 0

Three nodes on the loopback address train the smallest GPT-2 while faults, chosen from the seed, are injected one after
another: a rank is killed or paused, a launcher is told to end, the newest checkpoint is damaged, a node is killed. What
has ended is started again. After the given time all nodes are told to end, one process trains as many steps
undisturbed, and every loss and the last weights are compared.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from paralab import checkpoint
from paralab.benchmarks.elastic import START_S, WORK, loss_difference
from paralab.benchmarks.local_nodes import LocalNodes, train_alone, wait, wait_until
from paralab.errors import RankError, UsageError
from paralab.options.arguments import Parser, positive
from paralab.training.goodput import RunProgress

NODES = 3
SAVE_EVERY = 4  # steps: often, so that there is an older checkpoint soon
SILENT_S = 60  # seconds after which a rank counts as hung
GO_ON_STEPS = 3  # steps of all nodes after which a run has recovered from a fault
KIND_COLUMNS = ("fault", "times", "restarts", "repeated steps", "time to recover, median", "longest")
COLUMNS = ("at", "step", "fault", "restarts", "repeated steps", "time to recover", "message")


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


def main(argv: Sequence[str] | None = None) -> int:
    """Inject faults, print the table, compare. Returns: 0 when nothing was lost.

    Raises: UsageError when the folder is there already; RankError when the run ends by itself.
    """
    parser = Parser(prog="paralab soak", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=positive,
        default=120.0,
        metavar="X",
        help="Minutes during which faults are injected (default: 120)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="Seed that chooses the faults, their nodes and times (default: 0)",
    )
    parser.add_argument(
        "--pause-s",
        type=positive,
        default=8.0,
        metavar="X",
        help="Mean number of seconds between two faults (default: 8)",
    )
    parser.add_argument(
        "--out",
        default="runs/soak",
        metavar="DIR",
        help="New folder for the run, its checkpoints and logs (default: runs/soak)",
    )
    options = parser.parse_args(argv)
    folder = Path(options.out)
    if folder.exists():
        raise UsageError(f"{folder} exists: remove it, or give another --out")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are more processes than cores
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the nodes, as Ctrl-C does
    command = [*WORK, "--steps", "1000000000", "--save-every", str(SAVE_EVERY), "--timeout-s", str(SILENT_S)]
    print(_row(COLUMNS), _row(["---"] * len(COLUMNS)), sep="\n", flush=True)
    recoveries = []
    with LocalNodes(folder, count=NODES, command=command, max_restarts=1_000_000) as nodes:
        soak = Soak(nodes, seed=options.seed, pause_s=options.pause_s)
        try:
            for recovery in soak.run(minutes=options.minutes):
                recoveries.append(recovery)
                print(_row(recovery.cells()), flush=True)
            steps = nodes.end(timeout_s=START_S)
        except (TimeoutError, AssertionError) as error:
            raise RankError(f"{error}: see {folder}/node*.txt") from error
        minutes = (time.monotonic() - soak.began_s) / 60
    return _compare(folder, nodes.run, recoveries, steps=steps, minutes=minutes)


def by_kind(recoveries: Sequence[Recovery]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each kind of fault: how often, what it cost in all, and how long recovery took."""
    for kind in sorted({recovery.kind for recovery in recoveries}):
        these = [recovery for recovery in recoveries if recovery.kind == kind]
        times_s = [recovery.recovery_s for recovery in these]
        restarts, again = sum(one.restarts for one in these), sum(one.steps_again for one in these)
        yield kind, str(len(these)), str(restarts), str(again), f"{median(times_s):.0f} s", f"{max(times_s):.0f} s"


def _compare(folder: Path, run: Path, recoveries: list[Recovery], *, steps: int, minutes: float) -> int:
    alone = folder / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    train_alone(alone, *WORK, "--steps", str(steps))
    again = sum(recovery.steps_again for recovery in recoveries)
    print("", _row(KIND_COLUMNS), _row(["---"] * len(KIND_COLUMNS)), *map(_row, by_kind(recoveries)), sep="\n")
    print(f"\n{len(recoveries)} faults in {minutes:.1f} minutes, {steps} steps, {again} of them repeated")
    try:
        difference = loss_difference(run, alone, steps=steps)
    except AssertionError as error:
        print(f"LOST: {error}")
        return 1
    print(f"every loss equals that of one process without faults, within {difference:.1e} (relative)")
    newest = checkpoint.latest(run)
    if newest is None or newest.name != f"step-{steps}":
        print(f"LOST: the last checkpoint is {newest}, step-{steps} was expected")
        return 1
    largest = _weight_difference(run, alone)
    print(f"every weight of the last checkpoints (step {steps}) as well, within {largest:.1e} (absolute)")
    return 0


def _weight_difference(run: Path, alone: Path) -> float:
    """Return the largest difference of a weight between the newest checkpoints of two runs. Raises: DataError."""
    ours, theirs = (checkpoint.read_weights(folder) for folder in (run, alone))
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
