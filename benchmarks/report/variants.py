"""Ways of doing a piece of work, with their runs: what is compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paralab.benchmarks.report import work
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.work import METHOD, WORK, Column, Difference
from paralab.records.proven import parity_words
from paralab.records.row import RunRecord

_LEAST, _MOST = 1e-30, 1e30  # nothing that is measured lies outside, and ratios of what lies within are finite


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
        """Say how many good runs have numbers that no other is a multiple of: zero or less, or none that is finite."""
        cells = [float(cell) for run in self.good if (cell := getattr(run, metric.column)) is not None]
        counts = {
            f"0 or less in {metric.column}": sum(cell <= _LEAST for cell in cells),
            f"no finite number in {metric.column}": sum(not cell < _MOST for cell in cells),
        }
        return [
            f"{self.label}: {count} of {len(cells)} runs have {what}, which has no ratio"
            for what, count in counts.items()
            if count
        ]

    def samples(self, metric: Metric) -> list[float]:
        """Return one number for each good run that has it."""
        return [float(getattr(run, metric.column)) for run in self.measured(metric)]


def parity(runs: Sequence[RunRecord]) -> bool | None:
    """Return the parity result of runs of one way: that of any run that was checked, the worst of several."""
    known = [run.parity for run in runs if run.parity is not None]
    return all(known) if known else None


def variants_by(runs: Sequence[RunRecord], column: Column = METHOD[0]) -> list[Variant]:
    """Split the runs of one piece of work by a column; a strategy in two layouts is two variants."""
    by_method = column in METHOD
    parts = list(work.group(runs, METHOD if by_method else (column,)).values())
    first = [part[0] for part in parts]
    cells = [work.show(work.value(run, column)) for run in first]
    labels = work.method_labels(first, after=column) if by_method else cells
    return [Variant(f"{label}{mark(part)}", part) for label, part in zip(labels, parts, strict=True)]


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
        plain = variant.label.removesuffix(mark(variant.runs))
        for name in names:
            mine = [run for run in variant.runs if files.get(id(run), "") == name]
            found.append(Variant(f"{name}: {plain}{mark(mine)}", mine, file=name))
    return found


def mark(runs: Sequence[RunRecord]) -> str:
    """Return what stands behind the label of runs that failed parity; empty for others."""
    return " (parity FAILED)" if parity(runs) is False else ""


def example(way: Variant) -> RunRecord:
    """Return a run that knows how it was done: a good one where there is one."""
    return next(iter(way.good), way.runs[0])


def cell(variant: Variant, column: Column) -> str:
    """Return the value of a variant in a column, as it is shown."""
    return work.show(work.value(example(variant), column))


def differences(variant: Variant, other: Variant, columns: Sequence[Column] = WORK) -> list[Difference]:
    """Return in which of the columns the runs of two variants differ: by default those of their work."""
    return work.differences(variant.runs, other.runs, columns)
