"""Decide which of two variants is better, by how much and with which evidence. Every command decides here.

The run is the unit: each gives one number, for example its median step. Variants are compared only when they did the
same work on the same hardware, and only with the baseline that differs from them in one thing (a file, an engine, a
strategy ...). Those that share a baseline are a family, and p values are corrected for the size of the family (Holm).

A verdict needs a corrected p value under 0.05 and an interval of the ratio without 1
(`paralab.benchmarks.report.evidence`): of six pairs of interleaved repeats, or of four good runs of each that are
compared run by run. With a margin of equivalence, what is undecided says about how many more repeats would decide.

A variant that failed parity, or that fails more often than its baseline, gets no verdict on its speed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from paralab.benchmarks.report import evidence, exact, stats, to_loss, work
from paralab.benchmarks.report.evidence import LEAST_RUNS, LEVEL, NOT_INTERLEAVED, Evidence
from paralab.benchmarks.report.exact import Change
from paralab.benchmarks.report.metrics import METRICS, Metric
from paralab.benchmarks.report.paired import Pairs, least_pairs, pair_up
from paralab.benchmarks.report.work import ENVIRONMENT, METHOD, WORK, Column, Difference
from paralab.errors import UsageError, did_you_mean
from paralab.records.proven import parity_words
from paralab.records.row import RunRecord, header

MOST_FAILED_SHARE = 0.5  # a variant that fails so often, and more often than its baseline, is judged by that alone
REGRESSION, NOT_COMPARABLE, UNDECIDED = 2, 3, 4  # exit status
_LEAST, _MOST = 1e-30, 1e30  # nothing that is measured lies outside, and ratios of what lies within are finite

Verdict = Literal[
    "better", "worse", "lower", "higher", "~", "not interleaved", "insufficient", "failed", "fails more", "fails less",
    "parity failed", "no data", "equivalent", "not enough evidence",
    "not reached",
]  # fmt: skip
DIFFERENT: tuple[Verdict, ...] = ("better", "worse", "lower", "higher")


@dataclass(frozen=True)
class Variant:
    """Runs of one way of doing a piece of work, failed ones included."""

    label: str
    runs: Sequence[RunRecord]
    file: str | None = None  # where other files hold the same way, so that they are told apart

    @property
    def good(self) -> list[RunRecord]:
        return [run for run in self.runs if run.status == "ok"]

    @property
    def failed(self) -> list[RunRecord]:
        return [run for run in self.runs if run.status != "ok"]

    @property
    def looked_often(self) -> bool:
        """Whether its repeats went on until there was a verdict."""
        return any(run.until_decided_percent is not None for run in self.runs)

    @property
    def groups(self) -> set[str]:
        """Return the sweeps that its runs belong to."""
        return {run.group for run in self.runs if run.group is not None}

    @property
    def parity(self) -> bool | None:
        """Whether it computes what one process computes: no where one run says so, unknown where none does."""
        return parity(self.runs)

    @property
    def parity_words(self) -> str:
        return parity_words(self.runs)

    def measured(self, metric: Metric) -> list[RunRecord]:
        """Return the good runs that have a usable number."""
        cells = [(run, getattr(run, metric.column)) for run in self.good]
        return [run for run, cell in cells if cell is not None and _LEAST < cell < _MOST]

    def without_ratio(self, metric: Metric) -> list[str]:
        """Say how many good runs have zero in a metric, or less: numbers that no other is a multiple of."""
        cells = [cell for run in self.good if (cell := getattr(run, metric.column)) is not None]
        if not (count := sum(cell <= 0 for cell in cells)):
            return []
        return [f"{self.label}: {count} of {len(cells)} runs have 0 or less in {metric.column}, which has no ratio"]

    def samples(self, metric: Metric) -> list[float]:
        """Return one number for each good run that has it."""
        return [float(getattr(run, metric.column)) for run in self.measured(metric)]


def parity(runs: Sequence[RunRecord]) -> bool | None:
    """Return the parity result of runs of one way: that of any run that was checked, the worst of several."""
    known = [run.parity for run in runs if run.parity is not None]
    return all(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """One variant against its baseline at one piece of work. What the runs cannot tell is None."""

    work: str
    base: str
    other: str
    metric: str
    base_runs: int  # good ones with a number
    other_runs: int
    base_failed: int = 0
    other_failed: int = 0
    base_parity: bool | None = None
    other_parity: bool | None = None
    base_parity_result: str = ""  # in words, with how much of the work it was proved on
    other_parity_result: str = ""
    base_median: float | None = None
    other_median: float | None = None
    ratio: float | None = None  # other / base
    low: float | None = None  # 95% interval of the ratio
    high: float | None = None
    p_independent: float | None = None  # were the runs independent of each other
    p: float | None = None  # on a machine that drifts; both are corrected for the variants beside it
    pairs: int = 0  # how many the evidence is from; 0: runs were not compared in pairs
    looked_often: bool = False  # repeats went on until there was a verdict, and p allows for that
    within_percent: float | None = None  # margin of equivalence
    p_equivalent: float | None = None  # of a difference as large as the margin
    more_repeats: int | None = None  # about how many would decide
    verdict: Verdict = "no data"
    changes: tuple[Change, ...] = ()  # exact columns that do not hold the same values
    exact_columns: int = 0  # how many were compared
    notes: tuple[str, ...] = ()  # failures, differences, caveats
    forced: bool = False  # the work was not the same

    @property
    def change_percent(self) -> float | None:
        return None if self.ratio is None else 100 * (self.ratio - 1)

    @property
    def worse_percent(self) -> float:
        """Return by how many percent the medians say that the variant is worse, whatever the evidence."""
        change = self.change_percent or 0.0
        return -change if METRICS[self.metric].better == "higher" else change

    @property
    def only_base_reached(self) -> bool:
        """Whether the variant alone did not reach, in any run, the loss that both were to reach."""
        return self.verdict == "not reached" and self.base_runs > 0 == self.other_runs

    @property
    def fails_more(self) -> bool:
        """Whether the variant failed in a larger share of its runs, if only by chance."""
        return self.other_failed * (self.base_runs + self.base_failed) > self.base_failed * (
            self.other_runs + self.other_failed
        )


@dataclass(frozen=True)
class Refusal:
    """Two variants that did not do the same work."""

    base: str
    other: str
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        told = "; ".join(map(str, self.differences))
        advice = "; ".join(dict.fromkeys(d.column.advice for d in self.differences if d.column.advice))
        end = "use --force to compare anyway" if self.can_force else "CPU and GPU runs are never compared"
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
    alone: list[str] = field(default_factory=list)  # variants without a partner
    gone: list[str] = field(default_factory=list)  # those among them that only the baseline file has
    families: "list[Family]" = field(default_factory=list)  # the variants of the comparisons, in their order

    def exit_status(self, fail_over_percent: float | None = None, *, fail_on_change: bool = False) -> int:
        """Return 0, or what is wrong: parity, a comparison that cannot be made, and with a limit the gate of each."""
        if any(comparison.other_parity is False for comparison in self.comparisons):
            return REGRESSION
        if self.refusals or not self.comparisons or any(c.base_parity is False for c in self.comparisons):
            return NOT_COMPARABLE
        gates = [exact_gate(comparison) for comparison in self.comparisons if fail_on_change]
        if fail_over_percent is not None:
            gates += [gate(comparison, fail_over_percent) for comparison in self.comparisons]
        if REGRESSION in gates:
            return REGRESSION
        return UNDECIDED if UNDECIDED in gates or (gates and self.gone) else 0


def exact_gate(comparison: Comparison) -> int:
    """Return 0 where no exact column changed, `REGRESSION` where one did, `UNDECIDED` where none could be compared."""
    if comparison.changes:
        return REGRESSION
    return 0 if comparison.exact_columns else UNDECIDED


def gate(comparison: Comparison, fail_over_percent: float) -> int:
    """Return 0 where a variant is no worse than allowed, `REGRESSION` where it is, `UNDECIDED` where runs cannot tell.

    It is worse with a verdict that says so by more than the limit, or when it fails more often than its baseline.
    Nothing can be told without a verdict, when it fails more often if only by chance, and when there is no evidence
    for a difference but the medians differ by more than the limit.
    """
    if comparison.verdict in ("failed", "fails more") or comparison.only_base_reached:
        return REGRESSION if comparison.base_runs else UNDECIDED
    if comparison.verdict not in ("better", "worse", "equivalent", "~"):
        return UNDECIDED
    if comparison.worse_percent > fail_over_percent:
        return REGRESSION if comparison.verdict == "worse" else UNDECIDED
    return UNDECIDED if comparison.fails_more else 0


@dataclass(frozen=True)
class Factor:
    """What may vary between variants: columns that change together. Without columns it is the file."""

    columns: tuple[str, ...]


# what changes of itself when one of these does
_DIVISION = ("micro_batch_size", "accumulation")
_FOLLOWS = {
    **dict.fromkeys(("strategy", "layout"), ("strategy", "layout", *_DIVISION)),
    **dict.fromkeys(_DIVISION, _DIVISION),
}
_FILE, _STRATEGY = Factor(()), Factor(_FOLLOWS["strategy"])
# in the order in which a baseline is looked for: the same in another file, under another engine ... at last strategy
_FACTORS = (_FILE, *(Factor((c.name,)) for c in METHOD if c.name not in _STRATEGY.columns), _STRATEGY)


@dataclass(frozen=True)
class Family:
    """Variants that are compared with one baseline, from which they differ in one thing where that is possible."""

    base: Variant
    others: tuple[Variant, ...]

    def compare(self, metric: Metric, *, name: str) -> list[Comparison]:
        """Compare each with the baseline; p values are corrected for how many there are."""
        found = [_measured(self.base, other, metric, name, tests=len(self.others)) for other in self.others]
        tested = [i for i, comparison in enumerate(found) if comparison.p is not None]
        looked_once = [i for i in tested if not found[i].looked_often]  # the others are corrected
        for column in ("p_independent", "p", "p_equivalent"):
            known = [i for i in looked_once if getattr(found[i], column) is not None]
            corrected = stats.holm([getattr(found[i], column) for i in known])
            for i, p in zip(known, corrected, strict=True):
                cell: dict[str, Any] = {column: p}
                found[i] = replace(found[i], **cell)
        for i in tested:
            found[i] = _judged(found[i], metric, tests=len(tested))
        return [_concluded(comparison) for comparison in found]


def variants_by(runs: Sequence[RunRecord], column: Column = METHOD[0]) -> list[Variant]:
    """Split the runs of one piece of work by a column; a strategy in two layouts is two variants."""
    by_method = column in METHOD
    parts = list(work.group(runs, METHOD if by_method else (column,)).values())
    first = [part[0] for part in parts]
    cells = [work.show(work.value(run, column)) for run in first]
    labels = work.method_labels(first, after=column) if by_method else cells
    return [Variant(f"{label}{_mark(part)}", part) for label, part in zip(labels, parts, strict=True)]


def _mark(runs: Sequence[RunRecord]) -> str:
    return " (parity FAILED)" if parity(runs) is False else ""


def variants(runs: Sequence[RunRecord], files: Mapping[int, str], column: Column = METHOD[0]) -> list[Variant]:
    """Split the runs of one piece of work by method, and by file where several files hold the same method.

    files: the name of the file of a run, by the `id` of the run; may be empty.
    """
    whole = variants_by(runs, column)
    places = [list(dict.fromkeys(files.get(id(run), "") for run in variant.runs)) for variant in whole]
    if all(len(names) == 1 for names in places):
        return whole
    found = []
    for variant, names in zip(whole, places, strict=True):
        plain = variant.label.removesuffix(_mark(variant.runs))
        for name in names:
            mine = [run for run in variant.runs if files.get(id(run), "") == name]
            found.append(Variant(f"{name}: {plain}{_mark(mine)}", mine, file=name))
    return found


def families(ways: Sequence[Variant]) -> list[Family]:
    """Give every variant of one piece of work but one a baseline, which differs from it in as little as possible."""
    found, remaining = [], list(ways)
    for factor in _FACTORS:
        for group in _alike_but_for(remaining, factor):
            if len(group) > 1:
                found.append(_family(group, base_of(group)))
                compared = set(map(id, found[-1].others))
                remaining = [way for way in remaining if id(way) not in compared]
    if len(remaining) > 1:
        found.append(_family(remaining, base_of(remaining)))
    return found


def base_of(ways: Sequence[Variant]) -> Variant:
    """Choose what others are compared with: one process, else plain data parallelism, else the first that ran."""
    good = [way for way in ways if way.good] or list(ways)
    names = [_cell(way, METHOD[0]) for way in good]
    return next((good[names.index(name)] for name in ("single", "ddp") if name in names), good[0])


def _family(group: Sequence[Variant], base: Variant) -> Family:
    return Family(base, tuple(way for way in group if way is not base))


def _alike_but_for(ways: Sequence[Variant], factor: Factor) -> list[list[Variant]]:
    """Group variants that agree in everything except one factor."""
    columns = [column for column in METHOD if column.name not in factor.columns]
    by_file: dict[str | None, list[Variant]] = {}
    for way in ways:
        by_file.setdefault(None if factor is _FILE else way.file, []).append(way)
    found = []
    for part in by_file.values():
        owner = {id(_example(way)): way for way in part}
        found += [[owner[id(run)] for run in runs] for runs in work.group(map(_example, part), columns).values()]
    return found


def _example(way: Variant) -> RunRecord:
    """Return a run that knows how it was done: a good one where there is one."""
    return next(iter(way.good), way.runs[0])


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
    cases = []
    for runs in work.group([*base, *other], WORK).values():
        for case in variants_by(runs):
            plain = case.label.removesuffix(_mark(case.runs))
            halves = [run for run in case.runs if id(run) in of_base], [r for r in case.runs if id(r) not in of_base]
            cases.append([Variant(f"{n} {plain}{_mark(half)}", half) for n, half in zip(names, halves, strict=True)])
    pairs = [(left, right) for left, right in cases if left.runs and right.runs]
    left_over = [left for left, right in cases if not right.runs]
    right_over = [right for left, right in cases if not left.runs]
    pairs += _take_pairs(left_over, right_over, _only_same_work)
    outcome = Outcome()
    for left, right in pairs:
        outcome.families.append(Family(left, (right,)))
        outcome.comparisons += outcome.families[-1].compare(metric, name=work.work_label(_example(left)))
    refused = _take_pairs(left_over, right_over, _nearest_of_strategy)
    if not pairs and not refused:
        refused = _take_pairs(left_over, right_over, _nearest)
    _refuse_or_force(outcome, refused, metric, force)
    outcome.gone = [f"{variant.label} ({work.work_label(variant.runs[0])})" for variant in left_over]
    outcome.alone = [
        *outcome.gone,
        *(f"{variant.label} ({work.work_label(variant.runs[0])})" for variant in right_over),
    ]
    return outcome


def compare_column(
    records: Sequence[RunRecord],
    by: str,
    metric: Metric,
    *,
    baseline: str | None = None,
    force: bool = False,
    files: Mapping[int, str] | None = None,
) -> Outcome:
    """Compare runs that differ in one column with those of `baseline`, or else with what `base_of` chooses.

    files: as for `variants`.

    Raises: UsageError when the column or the baseline is unknown.
    """
    if by not in header():
        raise UsageError(f"--by {by} is not a column{did_you_mean(by, header())}: use --by strategy, engine or layout")
    column = next((c for c in (*WORK, *METHOD, *ENVIRONMENT) if c.name == by), Column(by, by))
    pieces = _pieces(records, column, files or {})
    names = {name for piece in pieces for variant in piece for name in (variant.label, _cell(variant, column))}
    if baseline is not None and baseline not in names:
        hint = did_you_mean(baseline, names)
        raise UsageError(f"--baseline {baseline} is not among the runs{hint}: use one of {', '.join(sorted(names))}")
    outcome, lone = Outcome(), []
    several = "layout" not in _FOLLOWS.get(by, ()) and len({record.layout for record in records}) > 1
    for piece in pieces:
        chosen = [variant for variant in piece if baseline in (variant.label, _cell(variant, column))]
        base = base_of(piece) if baseline is None else next(iter(chosen), None)
        others = tuple(variant for variant in piece if variant is not base)
        if base is None or not others:
            lone += piece
        elif column in WORK:
            _refuse_or_force(outcome, [(base, variant) for variant in others], metric, force)
        else:
            first = _example(base)
            name = work.work_label(first) + (f", {first.strategy} as {first.layout}" if several else "")
            outcome.families.append(Family(base, others))
            outcome.comparisons += outcome.families[-1].compare(metric, name=name)
    other_work = (
        [] if outcome.comparisons or outcome.refusals else [variant for variant in lone[1:] if _apart(lone[0], variant)]
    )
    if other_work:
        _refuse_or_force(outcome, [(lone[0], variant) for variant in other_work], metric, force)
    else:
        firsts = [variant.runs[0] for variant in lone]
        plain = work.method_labels(firsts)
        labels = [
            f"{variant.file}: {label}" if variant.file else label for variant, label in zip(lone, plain, strict=True)
        ]
        outcome.alone = [f"{label} ({work.work_label(run)})" for label, run in zip(labels, firsts, strict=True)]
    return outcome


def _named(group: Sequence[Variant], column: Column) -> list[Variant]:
    """Name the variants of a group by the column in which they differ, and by no more than tells them apart."""
    labels = work.method_labels([_example(way) for way in group], after=column)
    return [
        replace(way, label=f"{way.file}: {label}{_mark(way.runs)}" if way.file else f"{label}{_mark(way.runs)}")
        for way, label in zip(group, labels, strict=True)
    ]


def _pieces(records: Sequence[RunRecord], column: Column, files: Mapping[int, str]) -> list[list[Variant]]:
    """Return groups of variants that differ in one column, and in what follows from it, alone."""
    if column in METHOD:
        factor = Factor(_FOLLOWS.get(column.name, (column.name,)))
        whole = [variants(runs, files, column) for runs in work.group(records, WORK).values()]
        return [_named(group, column) for piece in whole for group in _alike_but_for(piece, factor)]
    same = tuple(c for c in (*WORK, *METHOD) if c != column)
    return [variants_by(runs, column) for runs in work.group(records, same).values()]


_Choose = Callable[[Variant, Sequence[Variant], Sequence[Variant]], Variant | None]


def _cell(variant: Variant, column: Column) -> str:
    return work.show(work.value(_example(variant), column))


def _take_pairs(left: list[Variant], right: list[Variant], choose: _Choose) -> list[tuple[Variant, Variant]]:
    """Move the pairs that `choose` finds out of both lists."""
    pairs = []
    for variant in list(left):
        if (partner := choose(variant, left, right)) is not None:
            pairs.append((variant, partner))
            left.remove(variant)
            right.remove(partner)
    return pairs


def _only_same_work(variant: Variant, left: Sequence[Variant], right: Sequence[Variant]) -> Variant | None:
    mine = [other for other in left if not _apart(variant, other)]
    theirs = [other for other in right if not _apart(variant, other)]
    return theirs[0] if len(mine) == len(theirs) == 1 else None


def _nearest_of_strategy(variant: Variant, left: Sequence[Variant], right: Sequence[Variant]) -> Variant | None:
    same = ("model", "strategy")
    alike = [o for o in right if all(d.column.name not in same for d in _apart(variant, o, (*WORK, *METHOD)))]
    return _nearest(variant, left, alike)


def _nearest(variant: Variant, left: Sequence[Variant], right: Sequence[Variant]) -> Variant | None:
    return min(right, key=lambda other: len(_apart(variant, other, (*WORK, *METHOD))), default=None)


def _apart(variant: Variant, other: Variant, columns: Sequence[Column] = WORK) -> list[Difference]:
    return work.differences(variant.runs, other.runs, columns)


def _refuse_or_force(outcome: Outcome, pairs: Sequence[tuple[Variant, Variant]], metric: Metric, force: bool) -> None:
    """Refuse pairs that did other work, or compare and mark them where that is forced."""
    for left, right in pairs:
        refusal = Refusal(left.label, right.label, tuple(_apart(left, right)))
        if force and refusal.can_force:
            outcome.families.append(Family(left, (right,)))
            compared = outcome.families[-1].compare(metric, name=work.work_label(_example(left)))
            outcome.comparisons += [replace(comparison, forced=True) for comparison in compared]
        else:
            outcome.refusals.append(refusal)


def _measured(base: Variant, other: Variant, metric: Metric, name: str, *, tests: int) -> Comparison:
    """Fill in what the numbers say, without a verdict on speed where there are enough of them for one."""
    left, right = base.samples(metric), other.samples(metric)
    found = Comparison(
        work=name, base=base.label, other=other.label, metric=metric.column,
        base_runs=len(left), other_runs=len(right), base_failed=len(base.failed), other_failed=len(other.failed),
        base_parity=base.parity, other_parity=other.parity,
        base_parity_result=base.parity_words, other_parity_result=other.parity_words,
        changes=exact.changes(base.good, other.good), exact_columns=exact.compared(base.good, other.good),
        notes=(*_notes(base, other), *base.without_ratio(metric), *other.without_ratio(metric)),
        base_median=stats.median(left) if left else None, other_median=stats.median(right) if right else None,
        ratio=stats.median(right) / stats.median(left) if left and right else None,
        within_percent=None if metric.within is None else 100 * metric.within,
    )  # fmt: skip
    if False in (base.parity, other.parity):
        return replace(found, verdict="parity failed")
    if metric.column in to_loss.COLUMNS and (to_loss.missed(base.good) or to_loss.missed(other.good)):
        return replace(found, verdict="not reached")
    if not left or not right:
        return replace(found, verdict="failed" if other.failed and not right else "no data")
    if reliability := _reliability(base, other):
        return replace(found, verdict=reliability)
    return _weighed(found, base, other, metric, tests=tests)


def _weighed(found: Comparison, base: Variant, other: Variant, metric: Metric, *, tests: int) -> Comparison:
    """Fill in the test and the interval, of pairs where there are enough of them for a verdict."""
    left, right = base.samples(metric), other.samples(metric)
    pairs = pair_up(base.measured(metric), other.measured(metric), metric.column)
    interleaved = len(pairs) == min(len(left), len(right))
    looks = base.looked_often and other.looked_often and not base.groups.isdisjoint(other.groups)
    if not looks and len(pairs) < least_pairs(tests, LEVEL):
        pairs = Pairs((), ())
    found = replace(found, verdict="insufficient", pairs=len(pairs), looked_often=looks)
    if metric.within is not None:
        more = evidence.repeats_to_go(left, right, pairs, metric.within, tests=tests, looks=looks)
        found = replace(found, more_repeats=more)
    if len(pairs):
        return _with_evidence(found, evidence.of_pairs(pairs, metric.within, tests=tests, looks=looks))
    if looks:
        return _with_note(found, "a verdict needs pairs of repeats, of which either is first in some")
    if min(len(left), len(right)) < LEAST_RUNS:
        return _with_note(found, f"a verdict needs {LEAST_RUNS} good runs of each: {_more(found, LEAST_RUNS)}")
    started = [[run.started_at for run in variant.measured(metric)] for variant in (base, other)]
    times = None if interleaved else started
    return _with_evidence(found, evidence.of_runs(left, right, times, metric.within))


def _with_evidence(found: Comparison, seen: Evidence) -> Comparison:
    found = found if seen.in_turns else _with_note(found, NOT_INTERLEAVED)
    return replace(
        found, ratio=seen.ratio, low=seen.low, high=seen.high, p=seen.p, p_independent=seen.p_independent,
        p_equivalent=seen.p_equivalent,
    )  # fmt: skip


def _reliability(base: Variant, other: Variant) -> Verdict | None:
    """Judge by failures alone, where one of two fails in most of its runs or more often than chance lets it."""
    counts = [(len(variant.failed), len(variant.runs)) for variant in (base, other)]
    shares = [failed / runs for failed, runs in counts]
    if shares[0] == shares[1]:
        return None
    less, more = sorted(counts, key=lambda count: count[0] / count[1])
    if max(shares) < MOST_FAILED_SHARE and stats.fisher(*more, *less) >= LEVEL:
        return None
    return "fails more" if shares[1] > shares[0] else "fails less"


def _judged(found: Comparison, metric: Metric, *, tests: int) -> Comparison:
    assert found.ratio is not None and found.low is not None and found.high is not None
    assert found.p is not None and found.p_independent is not None
    if not found.pairs and tests * stats.smallest_p(found.base_runs, found.other_runs) >= LEVEL:
        needed = next(n for n in range(LEAST_RUNS, 100) if tests * stats.smallest_p(n, n) < LEVEL)
        of_them = "a verdict" if tests == 1 else f"a verdict on {tests} variants beside one baseline"
        return _with_note(found, f"{of_them} needs {needed} good runs of each: {_more(found, needed)}")
    if found.p_equivalent is not None and found.p_equivalent < LEVEL:
        return replace(found, verdict="equivalent")
    if found.p < LEVEL and not found.low <= 1 <= found.high:
        return replace(found, verdict=metric.verdict(found.ratio))
    if found.p_independent < LEVEL and found.p > found.p_independent:
        drift = f"a machine whose speed drifts could differ by as much (p = {found.p:.2g})"
        note = f"{drift}: interleave the runs, as paralab bench does"
        return _with_note(replace(found, verdict="not interleaved"), note)
    return replace(found, verdict="~")


def _concluded(found: Comparison) -> Comparison:
    """Return the comparison with one of four ends, where a margin of equivalence was given and runs can tell."""
    undecided = found.within_percent is not None and found.verdict in ("~", "insufficient", "not interleaved")
    return replace(found, verdict="not enough evidence") if undecided else replace(found, more_repeats=None)


def _with_note(found: Comparison, note: str) -> Comparison:
    return replace(found, notes=(*found.notes, note))


def _more(found: Comparison, needed: int) -> str:
    """Say how many runs are lacking."""
    counts = ((found.base, found.base_runs), (found.other, found.other_runs))
    return ", ".join(f"{needed - runs} more of {label}" for label, runs in counts if runs < needed)


def _notes(base: Variant, other: Variant) -> list[str]:
    """Say what a reader of the ratio must know: parity, other work, failures, environment, how runs were made."""
    notes = [note for variant in (base, other) for note in parity_failures(variant)]
    notes += [f"not the same work: {difference}" for difference in _apart(base, other)]
    notes += [note for variant in (base, other) for note in failures(variant)]
    notes += [note for variant in (base, other) for note in to_loss.said(variant.label, variant.good)]
    notes += [str(difference) for difference in _apart(base, other, ENVIRONMENT)]
    for variant in (base, other):
        good = [run for run in variant.runs if run.status == "ok"]
        for column, wrong, said in (
            ("steady", False, "never reached a steady step time"),
            ("throttled", True, "were throttled"),
        ):
            if count := sum(getattr(run, column) is wrong for run in good):
                notes.append(f"{variant.label}: {count} of {len(good)} runs {said}")
    return notes


def parity_failures(variant: Variant) -> list[str]:
    """Say by how much a variant computes something else than one process, where it does."""
    wrong = [run for run in variant.runs if run.parity is False]
    if not wrong:
        return []
    columns = (("loss", "loss_difference_max"), ("gradient norm", "grad_norm_difference_max"),
               ("parameters", "parameter_difference_max"))  # fmt: skip
    known = [(name, [cell for run in wrong if (cell := getattr(run, column)) is not None]) for name, column in columns]
    off = ", ".join(f"{name} off by {max(cells):.2g}" for name, cells in known if cells)
    said = f"{variant.label}: {len(wrong)} of {len(variant.runs)} runs do not compute what one process computes"
    return [f"{said} ({off})" if off else said]


def failures(variant: Variant) -> list[str]:
    """Say for each way in which runs of a variant failed how many did, where and why."""
    said: dict[str, int] = {}
    for run in variant.failed:
        place = (("rank", run.failed_rank), ("step", run.failed_step))
        at = ", ".join(f"{name} {number}" for name, number in place if number is not None)
        text = " ".join(filter(None, (run.status, f"at {at}" if at else "", f"({run.reason})" if run.reason else "")))
        said[text] = said.get(text, 0) + 1
    return [f"{variant.label}: {count} of {len(variant.runs)} runs failed: {text}" for text, count in said.items()]
