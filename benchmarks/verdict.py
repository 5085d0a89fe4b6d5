"""Which of two ways is better, by how much, and how sure that is.

The run is the unit: each gives one number, for example its median step. Groups of runs are compared only when they
did the same work on the same hardware. A verdict needs four runs an arm, a Mann-Whitney p value under 0.05 (after
Holm's correction where more than two arms share one piece of work) and a bootstrap interval of the ratio without 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal

from benchmarks import stats, work
from benchmarks.work import ENVIRONMENT, METHOD, WORK, Column, Difference
from parallel.errors import UsageError, did_you_mean
from parallel.measure.record import RunRecord, header

LEVEL = 0.05
LEAST_RUNS = 4
REGRESSION, NOT_COMPARABLE = 2, 3  # exit status

Verdict = Literal["better", "worse", "~", "insufficient", "failed", "no data"]


@dataclass(frozen=True)
class Metric:
    """A column with one positive number for each run."""

    column: str
    better: Literal["lower", "higher"]


METRICS = {
    metric.column: metric
    for metric in (
        Metric("step_time_p50_s", "lower"),
        Metric("step_time_p95_s", "lower"),
        Metric("samples_per_s", "higher"),
        Metric("tokens_per_s", "higher"),
        Metric("mfu", "higher"),
        Metric("startup_s", "lower"),
        Metric("energy_j", "lower"),
        Metric("process_peak_bytes", "lower"),
        Metric("memory_tensors_peak_bytes", "lower"),
        Metric("gpu_allocated_peak_bytes", "lower"),
    )
}


@dataclass(frozen=True)
class Arm:
    """Runs of one way of doing a piece of work, failed ones included."""

    label: str
    runs: Sequence[RunRecord]

    @property
    def failed(self) -> list[RunRecord]:
        return [run for run in self.runs if run.status != "ok"]

    def samples(self, metric: Metric) -> list[float]:
        """Return one number for each good run that has it."""
        cells = [getattr(run, metric.column) for run in self.runs if run.status == "ok"]
        return [float(cell) for cell in cells if cell is not None and isfinite(cell) and cell > 0]


@dataclass(frozen=True)
class Comparison:
    """One arm against another at one piece of work. What the runs cannot tell is None."""

    work: str
    base: str
    other: str
    metric: str
    base_runs: int
    other_runs: int
    base_median: float | None = None
    other_median: float | None = None
    ratio: float | None = None  # other / base
    low: float | None = None  # 95% interval of the ratio
    high: float | None = None
    p: float | None = None  # corrected for the arms beside it
    verdict: Verdict = "no data"
    notes: tuple[str, ...] = ()  # failures, differences, caveats
    forced: bool = False  # the work was not the same

    @property
    def change_percent(self) -> float | None:
        return None if self.ratio is None else 100 * (self.ratio - 1)


@dataclass(frozen=True)
class Refusal:
    """Two arms that did not do the same work."""

    base: str
    other: str
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        told = "; ".join(map(str, self.differences))
        advice = "; ".join(dict.fromkeys(d.column.advice for d in self.differences if d.column.advice))
        end = "use --force to look anyway" if self.can_force else "a CPU and a GPU never stand in one ranking"
        joint = (", or " if self.can_force else "; ") if advice else ""
        return f"{self.base} and {self.other} differ in {told}: {advice}{joint}{end}"

    @property
    def can_force(self) -> bool:
        return all(difference.column.name != "device" for difference in self.differences)


@dataclass
class Outcome:
    """What one look at some runs found."""

    comparisons: list[Comparison] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)  # arms without a partner

    def exit_status(self, fail_over_percent: float | None = None) -> int:
        if self.refusals or not self.comparisons:
            return NOT_COMPARABLE
        if fail_over_percent is not None and any(is_regression(c, fail_over_percent) for c in self.comparisons):
            return REGRESSION
        return 0


def is_regression(comparison: Comparison, fail_over_percent: float) -> bool:
    """Say whether the other arm is worse, with evidence, by more than some percent, or no longer runs."""
    worse = comparison.verdict == "worse" and abs(comparison.change_percent or 0.0) > fail_over_percent
    return worse or (comparison.verdict == "failed" and comparison.base_runs > 0)


def arms(runs: Sequence[RunRecord], column: Column = METHOD[0]) -> list[Arm]:
    """Split the runs of one piece of work by a column; a strategy in two layouts is two arms."""
    by_method = column in METHOD
    parts = list(work.group(runs, METHOD if by_method else (column,)).values())
    first = [part[0] for part in parts]
    cells = [work.show(work.value(run, column)) for run in first]
    labels = work.method_labels(first, after=column) if by_method else cells
    return [Arm(label, part) for label, part in zip(labels, parts, strict=True)]


def compare_arms(base: Arm, others: Sequence[Arm], metric: Metric, *, name: str) -> list[Comparison]:
    """Compare arms of one piece of work with a base; their p values are corrected for how many there are."""
    found = [_measured(base, other, metric, name) for other in others]
    tested = [i for i, comparison in enumerate(found) if comparison.p is not None]
    corrected = stats.holm([found[i].p or 0.0 for i in tested])
    for i, p in zip(tested, corrected, strict=True):
        found[i] = _judged(replace(found[i], p=p), metric, tests=len(tested))
    return found


def compare_files(
    base: Sequence[RunRecord],
    other: Sequence[RunRecord],
    metric: Metric,
    *,
    names: tuple[str, str] = ("A", "B"),
    force: bool = False,
) -> Outcome:
    """Compare each case of one file with the same case of another.

    A case that only one file has is compared with the only such case of the other file that did the same work. Where
    there is none, it is refused if the other file has that model and strategy, and is listed as alone otherwise.
    """
    of_base = {id(run) for run in base}
    cases = [
        (Arm(f"{names[0]} {case.label}", [run for run in case.runs if id(run) in of_base]),
         Arm(f"{names[1]} {case.label}", [run for run in case.runs if id(run) not in of_base]))
        for runs in work.group([*base, *other], WORK).values() for case in arms(runs)
    ]  # fmt: skip
    pairs = [(left, right) for left, right in cases if left.runs and right.runs]
    left_over = [left for left, right in cases if not right.runs]
    right_over = [right for left, right in cases if not left.runs]
    pairs += _take_pairs(left_over, right_over, _only_same_work)
    outcome = Outcome()
    for left, right in pairs:
        outcome.comparisons += compare_arms(left, [right], metric, name=work.work_label(left.runs[0]))
    refused = _take_pairs(left_over, right_over, _nearest_of_strategy)
    if not pairs and not refused:
        refused = _take_pairs(left_over, right_over, _nearest)
    _settle(outcome, refused, metric, force)
    outcome.alone += [f"{arm.label} ({work.work_label(arm.runs[0])})" for arm in (*left_over, *right_over)]
    return outcome


def compare_column(
    records: Sequence[RunRecord], by: str, metric: Metric, *, baseline: str | None = None, force: bool = False
) -> Outcome:
    """Compare runs that differ in one column with those of `baseline`, which is the first value unless given.

    Raises: UsageError when the column or the baseline is unknown.
    """
    if by not in header():
        raise UsageError(f"--by {by} is not a column{did_you_mean(by, header())}: use --by strategy, engine or layout")
    column = next((c for c in (*WORK, *METHOD, *ENVIRONMENT) if c.name == by), Column(by, by))
    hidden = {by, *_FOLLOWS.get(by, ())}
    same = tuple(c for c in (*WORK, *METHOD) if c.name not in hidden)
    pieces = [arms(runs, column) for runs in work.group(list(dict.fromkeys(records)), same).values()]
    names = {name for piece in pieces for arm in piece for name in (arm.label, _cell(arm, column))}
    if baseline is not None and baseline not in names:
        hint = did_you_mean(baseline, names)
        raise UsageError(f"--baseline {baseline} is not among the runs{hint}: use one of {', '.join(sorted(names))}")
    outcome, lone = Outcome(), []
    several = by not in _FOLLOWS and len({record.layout for record in records}) > 1
    for piece in pieces:
        base = next((arm for arm in piece if baseline in (None, arm.label, _cell(arm, column))), None)
        others = [arm for arm in piece if arm is not base]
        if base is None or not others:
            lone += piece
        elif column in WORK:
            _settle(outcome, [(base, arm) for arm in others], metric, force)
        else:
            first = base.runs[0]
            name = work.work_label(first) + (f", {first.strategy} as {first.layout}" if several else "")
            outcome.comparisons += compare_arms(base, others, metric, name=name)
    if not outcome.comparisons and not outcome.refusals and len(lone) > 1:
        _settle(outcome, [(lone[0], arm) for arm in lone[1:]], metric, force)
    else:
        firsts = [arm.runs[0] for arm in lone]
        labels = work.method_labels(firsts)
        outcome.alone = [f"{label} ({work.work_label(run)})" for label, run in zip(labels, firsts, strict=True)]
    return outcome


# what changes of itself when one of these does
_DIVISION = ("layout", "micro_batch_size", "accumulation")
_FOLLOWS = {"strategy": _DIVISION, "layout": ("strategy", *_DIVISION)}
_Choose = Callable[[Arm, Sequence[Arm], Sequence[Arm]], Arm | None]


def _cell(arm: Arm, column: Column) -> str:
    return work.show(work.value(arm.runs[0], column))


def _take_pairs(left: list[Arm], right: list[Arm], choose: _Choose) -> list[tuple[Arm, Arm]]:
    """Move the pairs that `choose` finds out of both lists."""
    pairs = []
    for arm in list(left):
        if (partner := choose(arm, left, right)) is not None:
            pairs.append((arm, partner))
            left.remove(arm)
            right.remove(partner)
    return pairs


def _only_same_work(arm: Arm, left: Sequence[Arm], right: Sequence[Arm]) -> Arm | None:
    mine = [other for other in left if not _apart(arm, other)]
    theirs = [other for other in right if not _apart(arm, other)]
    return theirs[0] if len(mine) == len(theirs) == 1 else None


def _nearest_of_strategy(arm: Arm, left: Sequence[Arm], right: Sequence[Arm]) -> Arm | None:
    same = ("model", "strategy")
    alike = [o for o in right if all(d.column.name not in same for d in _apart(arm, o, (*WORK, *METHOD)))]
    return _nearest(arm, left, alike)


def _nearest(arm: Arm, left: Sequence[Arm], right: Sequence[Arm]) -> Arm | None:
    return min(right, key=lambda other: len(_apart(arm, other, (*WORK, *METHOD))), default=None)


def _apart(arm: Arm, other: Arm, columns: Sequence[Column] = WORK) -> list[Difference]:
    return work.differences(arm.runs, other.runs, columns)


def _settle(outcome: Outcome, pairs: Sequence[tuple[Arm, Arm]], metric: Metric, force: bool) -> None:
    """Refuse pairs that did other work, or compare and mark them where that is forced."""
    for left, right in pairs:
        refusal = Refusal(left.label, right.label, tuple(_apart(left, right)))
        if force and refusal.can_force:
            name = work.work_label(left.runs[0])
            outcome.comparisons += [replace(c, forced=True) for c in compare_arms(left, [right], metric, name=name)]
        else:
            outcome.refusals.append(refusal)


def _measured(base: Arm, other: Arm, metric: Metric, name: str) -> Comparison:
    """Fill in what the numbers say, without a verdict where there are enough of them for one."""
    left, right = base.samples(metric), other.samples(metric)
    found = Comparison(
        work=name, base=base.label, other=other.label, metric=metric.column,
        base_runs=len(left), other_runs=len(right), notes=tuple(_notes(base, other)),
        base_median=stats.median(left) if left else None, other_median=stats.median(right) if right else None,
        verdict="failed" if other.failed and not right else "no data",
    )  # fmt: skip
    if not left or not right:
        return found
    found = replace(found, ratio=stats.median(right) / stats.median(left), verdict="insufficient")
    if min(len(left), len(right)) < LEAST_RUNS:
        return replace(found, notes=(*found.notes, f"at least {LEAST_RUNS} good runs an arm are needed for a verdict"))
    low, high = stats.ratio_interval(left, right)
    return replace(found, low=low, high=high, p=stats.mann_whitney(left, right))


def _judged(found: Comparison, metric: Metric, *, tests: int) -> Comparison:
    assert found.ratio is not None and found.low is not None and found.high is not None and found.p is not None
    if tests * stats.smallest_p(found.base_runs, found.other_runs) > LEVEL:
        needed = next(n for n in range(LEAST_RUNS, 100) if tests * stats.smallest_p(n, n) <= LEVEL)
        note = f"{tests} arms beside one base: at least {needed} good runs an arm are needed for a verdict"
        return replace(found, notes=(*found.notes, note))
    if found.p >= LEVEL or found.low <= 1 <= found.high:
        return replace(found, verdict="~")
    return replace(found, verdict="better" if (found.ratio < 1) == (metric.better == "lower") else "worse")


def _notes(base: Arm, other: Arm) -> list[str]:
    """Say what a reader of the ratio must know: other work, failures, environment, and how the runs were made."""
    notes = [f"not the same work: {difference}" for difference in _apart(base, other)]
    notes += [note for arm in (base, other) for note in failures(arm)]
    notes += [str(difference) for difference in _apart(base, other, ENVIRONMENT)]
    for arm in (base, other):
        good = [run for run in arm.runs if run.status == "ok"]
        for column, wrong, said in (("steady", False, "never settled"), ("throttled", True, "were throttled")):
            if count := sum(getattr(run, column) is wrong for run in good):
                notes.append(f"{arm.label}: {count} of {len(good)} runs {said}")
    if _one_after_the_other(base, other):
        notes.append("all runs of one arm came before the other's: a drift of the machine would look the same")
    return notes


def failures(arm: Arm) -> list[str]:
    """Say for each way in which runs of an arm failed how many did, where and why."""
    said: dict[str, int] = {}
    for run in arm.failed:
        place = (("rank", run.failed_rank), ("step", run.failed_step))
        at = ", ".join(f"{name} {number}" for name, number in place if number is not None)
        text = " ".join(filter(None, (run.status, f"at {at}" if at else "", f"({run.reason})" if run.reason else "")))
        said[text] = said.get(text, 0) + 1
    return [f"{arm.label}: {count} of {len(arm.runs)} runs failed: {text}" for text, count in said.items()]


def _one_after_the_other(base: Arm, other: Arm) -> bool:
    left, right = ([run.started_at for run in arm.runs if run.status == "ok"] for arm in (base, other))
    several = min(len(left), len(right)) >= LEAST_RUNS
    return several and (max(left) < min(right) or max(right) < min(left))
