"""Compare a case with itself, many times: how often `paralab compare` finds a difference that is not there.

    python -m paralab.benchmarks.aa --comparisons 200 --out runs/aa.csv
    python -m paralab.benchmarks.aa --read runs/aa.csv

One process trains one model. Each comparison is of so many repeats of two runs, in an order that is drawn for each
repeat, as in `paralab bench`; a run is an interval of a few steps and its number is their median. What differs from
process to process is not in it. The same runs, with the times of B scaled by 1.05, show how often a slow-down of 5% is
found, and scaled by 1.02 how often two that are 2% apart are called equivalent within 2%. What --max-time-s ends goes
on where the same command is given again.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paralab.benchmarks.programs import program
from paralab.benchmarks.report.comparing import compare_files
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.metrics import STEP_TIME
from paralab.errors import ConfigError, DataError
from paralab.options.config import RunConfig, changed
from paralab.options.flags import resolve as read_config
from paralab.options.option import STEPS, option
from paralab.records.row import RunRecord

SLOWDOWN, MARGIN = 1.05, 0.02
COLUMNS = ("comparison", "repeat", "side", "started_at", "step_time_p50_s")


@dataclass(frozen=True, kw_only=True)
class AaConfig(RunConfig):
    """A case, and how often it is compared with itself."""

    strategy: str | None = changed("strategy", "single")
    size: str | None = changed("size", "tiny")
    global_batch_size: int | None = changed("global_batch_size", 4)
    steps: int = changed("steps", 5, help="Number of optimizer steps in a run")
    out: str | None = changed("out", None, unset="runs/aa.csv")
    comparisons: int = option(200, "Number of comparisons", group=STEPS, at_least=1)
    repeats: int = option(10, "Number of pairs of runs in each comparison", group=STEPS, at_least=6)
    max_time_s: int = option(480, "Seconds after which no further comparison is begun", group=STEPS, at_least=1)
    read: str | None = option(
        None, "Run nothing: judge the runs of this file", group=STEPS, metavar="FILE.csv", unset="run what is missing"
    )


@dataclass(frozen=True)
class Run:
    """One interval of steps of one side, A or B, of a comparison."""

    comparison: int
    repeat: int
    side: str
    started_at: str  # ISO 8601
    step_time_p50_s: float


def main(argv: list[str]) -> int:
    """Run what is missing of the comparisons, and print how many verdicts are wrong. Returns: 1 for more than 5%."""
    config = read_config(argv, config=AaConfig, prog="python -m paralab.benchmarks.aa", description=__doc__)
    path = Path(config.read or config.out or "runs/aa.csv")
    if config.read is None:
        _measure(config, path)
    runs = read(path)
    lines, status = judged(runs)
    print("\n".join(lines))
    return status


def _measure(config: AaConfig, path: Path) -> None:
    from paralab.planning.requested_layout import with_processes_of
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank
    from paralab.records.requested import Requested
    from paralab.running import task

    rank = Rank.from_env()
    work = resolve(with_processes_of(config, rank))
    if work.layout.world_size != 1:
        raise ConfigError(f"{work.layout} has {work.layout.world_size} processes, and this runs in one: use --nproc 1")
    task.check(work, "train")
    path.parent.mkdir(parents=True, exist_ok=True)
    first = max((run.comparison + 1 for run in read(path)), default=0) if path.exists() else 0
    task.start(
        "paralab.benchmarks.aa_worker:alternate", work.run, Requested.of(config, rank), str(path), first, nproc=1,
        config=config,
    )  # fmt: skip


def write(path: Path, runs: Sequence[Run]) -> None:
    """Append runs to a file."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS] if new else [])
        writer.writerows([getattr(run, column) for column in COLUMNS] for run in runs)


def read(path: Path) -> list[Run]:
    """Return the runs of a file. Raises: DataError for a file of another form."""
    try:
        with path.open(newline="") as file:
            return [
                Run(int(row["comparison"]), int(row["repeat"]), row["side"], row["started_at"],
                    float(row["step_time_p50_s"]))
                for row in csv.DictReader(file)
            ]  # fmt: skip
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no runs of this command ({error!r}): give one that it wrote") from None


def judged(runs: Sequence[Run]) -> tuple[list[str], int]:
    """Return a table of how often each verdict was given, and 1 where more than 5% are wrong, else 0."""
    by_comparison = [[run for run in runs if run.comparison == n] for n in sorted({run.comparison for run in runs})]
    apart = [_pair_spread(each) for each in by_comparison]
    lines = [
        f"{len(by_comparison)} comparisons; the ratio of a pair has a standard deviation of {np.median(apart):.1%}",
        f"{'compared':<22}{'truth':<18}{'faster':>8}{'slower':>8}{'equivalent':>12}",
    ]
    worst = 0.0
    for name, prepare in _WAYS.items():
        for truth, ratio, wrong in _TRUTHS:
            counts = _counts([_compared(prepare(each), ratio) for each in by_comparison])
            shares = {verdict: count / len(by_comparison) for verdict, count in counts.items()}
            worst = max(worst, sum(shares[verdict] for verdict in wrong)) if name == "in pairs" else worst
            cells = "".join(f"{shares[v]:>{w}.1%}" for v, w in (("better", 8), ("worse", 8), ("equivalent", 12)))
            lines.append(f"{name:<22}{truth:<18}{cells}")
    return lines, int(worst > 0.05)


_TRUTHS = (
    ("the same", 1.0, ("better", "worse")),
    ("2% slower", 1 + MARGIN, ("better", "equivalent")),
    ("5% slower", SLOWDOWN, ("better", "equivalent")),
)


def _alone(runs: Sequence[RunRecord]) -> list[RunRecord]:
    return [replace(run, group=None) for run in runs]


_WAYS: dict[str, Callable[[Sequence[Run]], list[RunRecord]]] = {
    "in pairs": lambda runs: list(_rows(runs)),
    "run by run": lambda runs: _alone(list(_rows(runs))),
}


def _counts(found: Sequence[tuple[Comparison, Comparison]]) -> dict[str, int]:
    """Count differences, found without a margin, and equivalence within it."""
    counts = {verdict: sum(plain.verdict == verdict for plain, _ in found) for verdict in ("better", "worse")}
    return counts | {"equivalent": sum(within.verdict == "equivalent" for _, within in found)}


def _compared(rows: Sequence[RunRecord], ratio: float) -> tuple[Comparison, Comparison]:
    """Compare A with B, whose times are scaled, without a margin and with one."""
    sides = [[row for row in rows if (row.run_id.endswith("A")) is is_base] for is_base in (True, False)]
    base, other = sides[0], [_scaled(row, ratio) for row in sides[1]]
    (plain,) = compare_files(base, other, STEP_TIME).comparisons
    (within,) = compare_files(base, other, replace(STEP_TIME, within=MARGIN)).comparisons
    return plain, within


def _scaled(row: RunRecord, ratio: float) -> RunRecord:
    assert row.step_time_p50_s is not None
    return replace(row, step_time_p50_s=row.step_time_p50_s * ratio)


def _rows(runs: Sequence[Run]) -> Iterator[RunRecord]:
    for run in runs:
        yield RunRecord(
            run_id=f"{run.comparison}-{run.repeat}-{run.side}", group=f"aa-{run.comparison}", repeat=run.repeat,
            started_at=run.started_at, status="ok", strategy_requested="single", strategy="single", model="gpt2",
            device="cpu", world_size=1, step_time_p50_s=run.step_time_p50_s,
        )  # fmt: skip


def _pair_spread(runs: Sequence[Run]) -> float:
    """Return the standard deviation of the logarithms of B / A over the pairs of a comparison."""
    sides = {side: {run.repeat: run.step_time_p50_s for run in runs if run.side == side} for side in "AB"}
    return float(np.std([np.log(sides["B"][repeat] / time) for repeat, time in sides["A"].items()], ddof=1))


if __name__ == "__main__":
    program(main, "aa")
