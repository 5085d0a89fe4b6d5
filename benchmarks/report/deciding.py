"""Which comparisons of a sweep are decided so far, for a sweep that goes on until all are."""

from collections.abc import Iterator, Sequence

from paralab.benchmarks.report import work
from paralab.benchmarks.report.comparing import compare_ways
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.families import families
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.outcome import Outcome
from paralab.benchmarks.report.variants import Variant, variants
from paralab.benchmarks.report.work import WORK
from paralab.records.row import RunRecord


def undecided(rows: Sequence[RunRecord], metric: Metric) -> set[str]:
    """Return the ids of the runs on both sides of each comparison that more repeats would say something about."""
    going = (sides for sides, found in _compared(rows, metric) if found.verdict == "not enough evidence")
    return {run.run_id for sides in going for side in sides for run in side.runs}


def outcome(rows: Sequence[RunRecord], metric: Metric) -> Outcome:
    """Return all comparisons."""
    return compare_ways(rows, metric)


def _compared(rows: Sequence[RunRecord], metric: Metric) -> Iterator[tuple[tuple[Variant, Variant], Comparison]]:
    for piece in work.group(rows, WORK).values():
        for family in families(variants(piece, {})):
            found = family.compare(metric, name=work.work_label(piece[0]))
            yield from (((family.base, other), each) for other, each in zip(family.others, found, strict=True))
