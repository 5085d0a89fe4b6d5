"""What one look at some runs found, and the exit status that follows from it."""

from dataclasses import dataclass, field, replace

from paralab.benchmarks.report.choices import NOT_COMPARABLE, REGRESSION, UNDECIDED
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.families import Family
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.work import Difference


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
    families: list[Family] = field(default_factory=list)  # the variants of the comparisons, in their order

    def compare(self, family: Family, metric: Metric, *, name: str, forced: bool = False) -> None:
        """Add a family and its comparisons. name: of the piece of work. forced: the work was not the same."""
        self.families.append(family)
        self.comparisons += [replace(found, forced=forced) for found in family.compare(metric, name=name)]

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
