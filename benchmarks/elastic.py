"""Kill a node of a training run and start it again, many times, and check that no loss differs from an undisturbed run.

    paralab elastic --times 10

Three nodes on the loopback address train the smallest GPT-2. Node 2 is killed, and started again when the two others
have continued without it. A trial succeeds if all three then continue, and end in order when they are told to; if only
the last steps before the kill are repeated; and if every loss is that of one process that nothing disturbed.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paralab.benchmarks.local_nodes import LocalNodes, train_alone
from paralab.options.arguments import Parser, whole
from paralab.records.log import read_losses
from paralab.records.reading import read
from paralab.records.row import RunRecord

TOLERANCE = 1e-5  # of a loss, relative
SAVE_EVERY = 10
START_S = 240.0  # importing torch in six processes, on a machine that has other work to do
# 12 samples divide by three, two and one process
WORK = ["--model", "gpt2", "--size", "tiny", "--global-batch-size", "12", "--precision", "fp64", "--eval-samples", "1"]
WORK += ["--eval-every", "1000000000", "--lr-schedule", "constant"]


@dataclass(frozen=True)
class Tried:
    """A run that went from three nodes to two to three. row: that of the whole run."""

    run: Path
    row: RunRecord
    steps: int

    def __str__(self) -> str:
        row = self.row
        return (
            f"{self.steps} steps, {row.restarts} restarts, {row.steps_lost} steps lost, {row.recovery_s:.1f} s to"
            f" recover, goodput {row.goodput_share:.0%} of {row.wall_s:.0f} s"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Try and print how many tries succeeded. Returns: 0 when all did."""
    parser = Parser(prog="paralab elastic", description=__doc__)
    parser.add_argument("--times", type=whole(1), default=10, metavar="N", help="Number of trials (default: 10)")
    times = parser.parse_args(argv).times
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are more processes than cores
    with tempfile.TemporaryDirectory(prefix="paralab-elastic-") as name:
        tried = []
        for i in range(times):
            try:
                tried.append(attempt(Path(name) / f"try{i}"))
                print(f"{i + 1:>3}: 3 -> 2 -> 3 nodes, {tried[-1]}", flush=True)
            except (TimeoutError, AssertionError) as error:
                print(f"{i + 1:>3}: FAILED: {error}", flush=True)
        same = [one for one in tried if _is_the_same_training(one, tried, Path(name) / "alone")]
    print(f"{len(same)} of {times} succeeded")
    return 0 if len(same) == times else 1


def attempt(folder: Path) -> Tried:
    """Go from three nodes to two to three. Raises: TimeoutError, AssertionError."""
    command = [*WORK, "--steps", "1000000000", "--save-every", str(SAVE_EVERY)]
    with LocalNodes(folder, count=3, command=command, max_restarts=5) as nodes:
        nodes.start_all()
        nodes.await_steps(SAVE_EVERY + 2, processes=3, timeout_s=START_S)
        nodes.kill(2)
        nodes.await_steps(5, processes=2, timeout_s=START_S)
        nodes.start(2)
        nodes.await_steps(5, processes=3, timeout_s=START_S)
        steps = nodes.end(timeout_s=START_S)
        row = read(nodes.run / "runs.csv")[-1]
        assert (row.reason, row.world_size) == ("stopped by SIGTERM", 3), f"{row.reason} on {row.world_size} processes"
        assert row.steps_lost is not None and row.steps_lost <= 2 * SAVE_EVERY, f"{row.steps_lost} steps were lost"
        return Tried(nodes.run, row, steps)


def _is_the_same_training(one: Tried, tried: list[Tried], alone: Path) -> bool:
    if not alone.exists():
        train_alone(alone, *WORK, "--steps", str(max(other.steps for other in tried)))
    try:
        difference = loss_difference(one.run, alone, steps=one.steps)
    except AssertionError as error:
        print(f"{one.run.parent.name}: FAILED: {error}")
        return False
    print(f"{one.run.parent.name}: losses within {difference:.0e} of those of one process")
    return True


def loss_difference(run: Path, alone: Path, *, steps: int) -> float:
    """Return the largest relative difference of all losses. Raises: AssertionError for a step that is not there."""
    ours, theirs = read_losses(run), read_losses(alone)
    missing = [step for step in range(steps) if step not in ours]
    assert not missing, f"{len(missing)} of {steps} steps are missing from the log, step {missing[0]} first"
    largest = max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in range(steps))
    assert largest <= TOLERANCE, f"the losses differ by {largest:.1e} from those of one process"
    return largest
