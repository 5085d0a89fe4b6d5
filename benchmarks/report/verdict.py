"""Decide whether one variant is better than another, by how much and with which evidence. Every command decides here.

The run is the unit: each gives one number, for example its median step. A verdict needs a corrected p value under 0.05
and an interval of the ratio without 1 (`paralab.benchmarks.report.evidence`): of six pairs of interleaved repeats, or
of four good runs of each that are compared run by run. With a margin of equivalence, what is undecided says about how
many more repeats would decide.

A variant that failed parity, or that fails more often than its baseline, gets no verdict on its speed.
"""

from dataclasses import replace

from paralab.benchmarks.report import evidence, exact, sequential, stats, to_loss
from paralab.benchmarks.report.caveats import notes_on
from paralab.benchmarks.report.comparison import Comparison, Verdict
from paralab.benchmarks.report.evidence import LEAST_RUNS, LEVEL, NOT_INTERLEAVED, Evidence
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.paired import Pairs, least_pairs, pair_up
from paralab.benchmarks.report.variants import Variant

MOST_FAILED_SHARE = 0.5  # a variant that fails so often, and more often than its baseline, is judged by that alone


def measured(base: Variant, other: Variant, metric: Metric, name: str, *, tests: int) -> Comparison:
    """Fill in what the numbers say, without a verdict on speed where there are enough of them for one."""
    left, right = base.samples(metric), other.samples(metric)
    found = Comparison(
        work=name, base=base.label, other=other.label, metric=metric.column,
        base_runs=len(left), other_runs=len(right), base_failed=len(base.failed), other_failed=len(other.failed),
        base_parity=base.parity, other_parity=other.parity,
        base_parity_result=base.parity_words, other_parity_result=other.parity_words,
        changes=exact.changes(base.good, other.good), exact_columns=exact.compared(base.good, other.good),
        notes=(*notes_on(base, other), *base.without_ratio(metric), *other.without_ratio(metric)),
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
    first_look = sequential.least_pairs(LEVEL / tests / (2 if metric.within is None else 1))
    if looks and (repeats := min(len(left), len(right))) < first_look:
        return _with_note(replace(found, pairs=0), _too_early(repeats, first_look))
    if len(pairs):
        return _with_evidence(found, evidence.of_pairs(pairs, metric.within, tests=tests, looks=looks))
    if looks:
        alone = "repeats of --until-decided are judged in pairs alone: both variants in the same repeats of one sweep"
        return _with_note(found, f"{alone}, each of them first in some")
    if (fewest := min(len(left), len(right))) < LEAST_RUNS:
        needs = f"a verdict needs {_needed(found, tests)}"
        return _with_note(found, f"one run says nothing about noise, and {needs}" if fewest == 1 else needs)
    started = [[run.started_at for run in variant.measured(metric)] for variant in (base, other)]
    times = None if interleaved else started
    return _with_evidence(found, evidence.of_runs(left, right, times, metric.within))


def _too_early(repeats: int, least: int) -> str:
    more = least - repeats
    so_far = f"{repeats} repeat{'s' * (repeats > 1)} of each so far, and the first look that can decide is at {least}"
    return f"nothing can be said yet: {so_far}, which is {more} more"


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


def judged(found: Comparison, metric: Metric, *, tests: int) -> Comparison:
    """Return a comparison that has a p value, with its verdict. tests: how many of its family have one."""
    assert found.ratio is not None and found.p is not None and found.p_independent is not None
    if not found.pairs and tests * stats.smallest_p(found.base_runs, found.other_runs) >= LEVEL:
        of_them = "a verdict" if tests == 1 else f"a verdict on {tests} variants beside one baseline"
        return _with_note(found, f"{of_them} needs {_needed(found, tests)}")
    if found.p_equivalent is not None and found.p_equivalent < LEVEL:
        return replace(found, verdict="equivalent")
    if found.p < LEVEL and found.low is not None and found.high is not None and not found.low <= 1 <= found.high:
        return replace(found, verdict=metric.verdict(found.ratio))
    if found.p_independent < LEVEL and found.p > found.p_independent:
        drift = f"a machine whose speed drifts could differ by as much (p = {found.p:.2g})"
        note = f"{drift}: interleave the runs, as paralab bench does"
        return _with_note(replace(found, verdict="not interleaved"), note)
    return replace(found, verdict="~")


def concluded(found: Comparison) -> Comparison:
    """Return the comparison with one of four ends, where a margin of equivalence was given and runs can tell."""
    undecided = found.within_percent is not None and found.verdict in ("~", "insufficient", "not interleaved")
    return replace(found, verdict="not enough evidence") if undecided else replace(found, more_repeats=None)


def _with_note(found: Comparison, note: str) -> Comparison:
    return replace(found, notes=(*found.notes, note))


def _needed(found: Comparison, tests: int) -> str:
    """Say how many runs a verdict takes at least, and how many are lacking."""
    least = evidence.least_runs(tests)
    counts = ((found.base, found.base_runs), (found.other, found.other_runs))
    lacking = ", ".join(f"{least - runs} more of {label}" for label, runs in counts if runs < least)
    if found.base_runs == found.other_runs:
        lacking = f"{least - found.base_runs} more"
    return f"{least} good runs of each: {lacking}"
