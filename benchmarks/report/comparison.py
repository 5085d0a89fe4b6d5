"""One variant against its baseline: what the runs say, and the verdict."""

from dataclasses import dataclass
from typing import Literal

from paralab.benchmarks.report.exact import Change
from paralab.benchmarks.report.metrics import METRICS

Verdict = Literal[
    "better", "worse", "lower", "higher", "~", "not interleaved", "insufficient", "failed", "fails more", "fails less",
    "parity failed", "no data", "equivalent", "not enough evidence",
    "not reached",
]  # fmt: skip
DIFFERENT: tuple[Verdict, ...] = ("better", "worse", "lower", "higher")


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
