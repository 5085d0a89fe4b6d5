"""Inject random faults into a training run for a long time, and check that nothing is lost.

    paralab soak --minutes 120 --seed 0

Three nodes on the loopback address train the smallest GPT-2 while faults, chosen from the seed, are injected one after
another: a rank is killed or paused, a launcher is told to end, the newest checkpoint is damaged, a node is killed. What
has ended is started again. After the given time all nodes are told to end, one process trains as many steps
undisturbed, and every loss and the last weights are compared.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from paralab.benchmarks.elastic import START_S, WORK, loss_difference
from paralab.benchmarks.injection import NODES, Recovery, Soak
from paralab.benchmarks.local_nodes import LocalNodes, train_alone
from paralab.console.lines import markdown_row
from paralab.errors import RankError, UsageError
from paralab.options.arguments import Parser, positive, whole

SAVE_EVERY = 4  # steps: often, so that there is an older checkpoint soon
SILENT_S = 60  # seconds after which a rank counts as hung
KIND_COLUMNS = ("fault", "times", "restarts", "repeated steps", "time to recover, median", "longest")
COLUMNS = ("at", "step", "fault", "restarts", "repeated steps", "time to recover", "message")


def main(argv: Sequence[str] | None = None) -> int:
    """Inject faults, print the table, compare. Returns: 0 when nothing was lost.

    Raises: UsageError when the folder is there already; RankError when the run ends by itself.
    """
    options = _parser().parse_args(argv)
    folder = Path(options.out)
    if folder.exists():
        raise UsageError(f"{folder} exists: remove it, or give another --out")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are more processes than cores
    command = [*WORK, "--steps", "1000000000", "--save-every", str(SAVE_EVERY), "--timeout-s", str(SILENT_S)]
    print(markdown_row(COLUMNS), markdown_row(["---"] * len(COLUMNS)), sep="\n", flush=True)
    recoveries = []
    with LocalNodes(folder, count=NODES, command=command, max_restarts=1_000_000) as nodes:
        soak = Soak(nodes, seed=options.seed, pause_s=options.pause_s)
        try:
            for recovery in soak.run(minutes=options.minutes):
                recoveries.append(recovery)
                print(markdown_row(recovery.cells()), flush=True)
            steps = nodes.end(timeout_s=START_S)
        except (TimeoutError, AssertionError) as error:
            raise RankError(f"{error}: see {folder}/node*.txt") from error
        minutes = (time.monotonic() - soak.began_s) / 60
    return _compare(folder, nodes.run, recoveries, steps=steps, minutes=minutes)


def _parser() -> Parser:
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
        type=whole(0),
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
    return parser


def by_kind(recoveries: Sequence[Recovery]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each kind of fault: how often, what it cost in all, and how long recovery took."""
    for kind in sorted({recovery.kind for recovery in recoveries}):
        these = [recovery for recovery in recoveries if recovery.kind == kind]
        times_s = [recovery.recovery_s for recovery in these]
        restarts, again = sum(one.restarts for one in these), sum(one.steps_again for one in these)
        yield kind, str(len(these)), str(restarts), str(again), f"{median(times_s):.0f} s", f"{max(times_s):.0f} s"


def _compare(folder: Path, run: Path, recoveries: list[Recovery], *, steps: int, minutes: float) -> int:
    """Compare with a run that nothing disturbed, and print the tables. Return 0 when nothing was lost."""
    from paralab import checkpoint

    alone = folder / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    train_alone(alone, *WORK, "--steps", str(steps))
    again = sum(recovery.steps_again for recovery in recoveries)
    print(
        "",
        markdown_row(KIND_COLUMNS),
        markdown_row(["---"] * len(KIND_COLUMNS)),
        *map(markdown_row, by_kind(recoveries)),
        sep="\n",
    )
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
    from paralab import checkpoint

    ours, theirs = (checkpoint.read_weights(folder) for folder in (run, alone))
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
