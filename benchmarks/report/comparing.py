"""Compare the runs of two files, or those that differ in one column.

Variants are compared only when they did the same work on the same hardware.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from paralab.benchmarks.report import work
from paralab.benchmarks.report.families import FOLLOWS, Factor, Family, alike_but_for, base_of, families
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.outcome import Outcome, Refusal
from paralab.benchmarks.report.variants import Variant, cell, differences, example, mark, variants, variants_by
from paralab.benchmarks.report.work import ENVIRONMENT, METHOD, WORK, Column
from paralab.errors import UsageError, did_you_mean
from paralab.records.row import RunRecord, header


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
            plain = case.label.removesuffix(mark(case.runs))
            halves = [run for run in case.runs if id(run) in of_base], [r for r in case.runs if id(r) not in of_base]
            cases.append([Variant(f"{n} {plain}{mark(half)}", half) for n, half in zip(names, halves, strict=True)])
    pairs = [(left, right) for left, right in cases if left.runs and right.runs]
    left_over = [left for left, right in cases if not right.runs]
    right_over = [right for left, right in cases if not left.runs]
    pairs += _take_pairs(left_over, right_over, _only_same_work)
    outcome = Outcome()
    for left, right in pairs:
        outcome.compare(Family(left, (right,)), metric, name=work.work_label(example(left)))
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


def compare_ways(records: Sequence[RunRecord], metric: Metric) -> Outcome:
    """Compare the ways in which each piece of work was done, as `families` puts them together."""
    outcome = Outcome()
    for piece in work.group(records, WORK).values():
        ways = variants(piece, {})
        name, found = work.work_label(example(ways[0])), families(ways)
        for family in found:
            outcome.compare(family, metric, name=name)
        outcome.alone += [] if found else [f"{ways[0].label} ({name})"]
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
    column = _column(by)
    pieces = _pieces(records, column, files or {})
    if baseline is not None:
        baseline = work.show(baseline)
        _check_baseline(baseline, {name for piece in pieces for way in piece for name in _names(way, column)})
    outcome, lone = Outcome(), []
    several = "layout" not in FOLLOWS.get(by, ()) and len({record.layout for record in records}) > 1
    for piece in pieces:
        chosen = (way for way in piece if baseline in _names(way, column))
        base = base_of(piece) if baseline is None else next(chosen, None)
        others = tuple(way for way in piece if way is not base)
        if base is None or not others:
            lone += piece
        elif column in WORK:
            _refuse_or_force(outcome, [(base, way) for way in others], metric, force)
        else:
            first = example(base)
            name = work.work_label(first) + (f", {first.strategy} as {first.layout}" if several else "")
            outcome.compare(Family(base, others), metric, name=name)
    nothing = not outcome.comparisons and not outcome.refusals
    if other_work := [(lone[0], way) for way in lone[1:] if nothing and differences(lone[0], way)]:
        _refuse_or_force(outcome, other_work, metric, force)
    else:
        outcome.alone = _alone(lone)
    return outcome


def _column(name: str) -> Column:
    """Return a column to compare by. Raises: UsageError for a name that no column has."""
    if name not in header():
        hint = did_you_mean(name, header())
        raise UsageError(f"--by {name} is not a column{hint}: use --by strategy, engine or layout")
    return next((c for c in (*WORK, *METHOD, *ENVIRONMENT) if c.name == name), Column(name, name))


def _names(way: Variant, column: Column) -> tuple[str, str]:
    """Return what a variant may be called as a baseline: its label, or its cell."""
    return way.label, cell(way, column)


def _check_baseline(baseline: str, names: set[str]) -> None:
    """Refuse a baseline that is not among the runs. Raises: UsageError."""
    if baseline not in names:
        hint = did_you_mean(baseline, names)
        raise UsageError(f"--baseline {baseline} is not among the runs{hint}: use one of {', '.join(sorted(names))}")


def _alone(ways: Sequence[Variant]) -> list[str]:
    """Name variants that nothing was compared with, each with its work."""
    firsts = [way.runs[0] for way in ways]
    labels = work.method_labels(firsts)
    places = [f"{way.file}: " if way.file else "" for way in ways]
    each = zip(places, labels, firsts, strict=True)
    return [f"{place}{label} ({work.work_label(run)})" for place, label, run in each]


def _named(group: Sequence[Variant], column: Column) -> list[Variant]:
    """Name the variants of a group by the column in which they differ, and by no more than tells them apart."""
    labels = work.method_labels([example(way) for way in group], after=column)
    return [
        replace(way, label=f"{way.file}: {label}{mark(way.runs)}" if way.file else f"{label}{mark(way.runs)}")
        for way, label in zip(group, labels, strict=True)
    ]


def _pieces(records: Sequence[RunRecord], column: Column, files: Mapping[int, str]) -> list[list[Variant]]:
    """Return groups of variants that differ in one column, and in what follows from it, alone."""
    if column in METHOD:
        factor = Factor(FOLLOWS.get(column.name, (column.name,)))
        whole = [variants(runs, files, column) for runs in work.group(records, WORK).values()]
        return [_named(group, column) for piece in whole for group in alike_but_for(piece, factor)]
    same = tuple(c for c in (*WORK, *METHOD) if c != column)
    return [variants_by(runs, column) for runs in work.group(records, same).values()]


_Choose = Callable[[Variant, Sequence[Variant], Sequence[Variant]], Variant | None]


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
    mine = [other for other in left if not differences(variant, other)]
    theirs = [other for other in right if not differences(variant, other)]
    return theirs[0] if len(mine) == len(theirs) == 1 else None


def _nearest_of_strategy(variant: Variant, left: Sequence[Variant], right: Sequence[Variant]) -> Variant | None:
    same = ("model", "strategy")
    alike = [o for o in right if all(d.column.name not in same for d in differences(variant, o, (*WORK, *METHOD)))]
    return _nearest(variant, left, alike)


def _nearest(variant: Variant, left: Sequence[Variant], right: Sequence[Variant]) -> Variant | None:
    return min(right, key=lambda other: len(differences(variant, other, (*WORK, *METHOD))), default=None)


def _refuse_or_force(outcome: Outcome, pairs: Sequence[tuple[Variant, Variant]], metric: Metric, force: bool) -> None:
    """Refuse pairs that did other work, or compare and mark them where that is forced."""
    for left, right in pairs:
        refusal = Refusal(left.label, right.label, tuple(differences(left, right)))
        if force and refusal.can_force:
            name = work.work_label(example(left))
            outcome.compare(Family(left, (right,)), metric, name=name, forced=True)
        else:
            outcome.refusals.append(refusal)
