"""What measured rows say of a claim: a figure, its interval, and a verdict by a rule that was fixed before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from paralab.benchmarks.claims.series import Options
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.families import Family
from paralab.benchmarks.report.metrics import METRICS
from paralab.benchmarks.report.variants import Variant
from paralab.console.lines import markdown_row
from paralab.records.row import RunRecord

Verdict = Literal[
    "holds", "holds in part", "does not hold here", "not enough evidence", "cannot be tested here"
]  # fmt: skip
Measured = Mapping[str, Sequence[RunRecord]]  # the rows of each series that one kind of device has
_COLUMNS = {"bandwidth": "link_mbit_per_s"}  # option of a case -> column, where it is another name


@dataclass(frozen=True)
class Finding:
    """What was found about a claim. figure: in a few words, with its interval. why: sentences beside the verdict."""

    figure: str
    verdict: Verdict
    why: str = ""
    table: Sequence[str] = field(default=())  # lines of Markdown


@dataclass(frozen=True)
class Speed:
    """How many times as fast a case is as its baseline; the 95% interval is None where there are too few runs."""

    times: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.times:.2f} times"
        return f"{self.times:.2f} times [{self.low:.2f}, {self.high:.2f}]"

    def judged(self, least: float, most: float = float("inf")) -> Verdict:
        """Return whether it is between two speeds, by its interval."""
        if self.low is None or self.high is None:
            return "not enough evidence"
        if self.high < least or self.low > most:
            return "does not hold here"
        return "holds" if least <= self.low and self.high <= most else "not enough evidence"


def of_case(rows: Sequence[RunRecord], case: Options) -> list[RunRecord]:
    """Return the rows of one case, among those of its series."""
    named = {_COLUMNS.get(name, name): value for name, value in case.items()}
    return [row for row in rows if all(getattr(row, name) == value for name, value in named.items())]


def speeds(rows: Sequence[RunRecord], cases: Sequence[Options], metric: str = "step_time_p50_s") -> list[Speed | None]:
    """Return how fast each case is beside the first one, None where either has no good run.

    Repeats that were interleaved are compared in pairs, and evidence is that of `paralab compare`.
    """
    base, *others = (Variant(str(dict(case)), of_case(rows, case)) for case in cases)
    compared = Family(base, tuple(others)).compare(METRICS[metric], name="")
    return [_speed(one, lower_is_better=METRICS[metric].better == "lower") for one in compared]


def _speed(found: Comparison, *, lower_is_better: bool) -> Speed | None:
    if found.ratio is None:
        return None
    ends = (found.low, found.high)
    if not lower_is_better:
        return Speed(found.ratio, *ends, found.pairs)
    low, high = (1 / end if end else None for end in reversed(ends))
    return Speed(1 / found.ratio, low, high, found.pairs)


def median_of(rows: Sequence[RunRecord], column: str) -> float:
    """Return the median of a column over good rows. Raises: ValueError where none has it."""
    from paralab.benchmarks.report.stats import median

    return median([float(cell) for row in rows if row.status != "crash" and (cell := getattr(row, column)) is not None])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table whose first column is text and whose others are numbers, as lines of Markdown."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [markdown_row(cells) for cells in (head, marks, *rows)]
