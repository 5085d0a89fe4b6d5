"""What a comparison can judge by: every numeric column of a row, with what is better in it where that is known."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from paralab.errors import UsageError, did_you_mean
from paralab.records.kinds import field_types
from paralab.records.row import RunRecord

_HIGHER = frozenset(
    (
        "samples_per_s", "samples_per_s_per_device", "tokens_per_s", "tokens_per_s_per_device",
        "model_tflops_per_device", "mfu", "hfu", "goodput_share",
    )
)  # fmt: skip
_LOWER = frozenset(
    (
        "exposed_comm_share", "bubble_share", "bubble_theory_share", "data_wait_share", "straggler_ratio",
        "dropped_share", "expert_imbalance", "energy_j", "energy_per_token_j", "graph_breaks", "recompiles",
        "steps_lost", "restarts", "loss_last", "steps_to_loss", "samples_to_loss",
    )
)  # fmt: skip
MOST_ASKED = (
    "step_time_p50_s", "tokens_per_s", "mfu", "exposed_comm_share", "bubble_share", "comm_dp_sent_bytes",
    "memory_state_peak_bytes", "process_peak_bytes", "energy_per_token_j", "startup_s", "goodput_share",
)  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A column with one positive number for each run."""

    column: str
    better: Literal["lower", "higher"] | None  # None: neither is better by itself
    within: float | None = None  # share by which two may differ and be equivalent; None: that is not asked

    @property
    def is_speed(self) -> bool:
        return self.better is not None and self.column.endswith(("_s", "_per_s", "_per_s_per_device"))

    @property
    def words(self) -> dict[str, str]:
        """Return how a verdict is called in this metric, where that is not its own name."""
        return {"better": "faster", "worse": "slower"} if self.is_speed else {}

    def verdict(self, ratio: float) -> Literal["better", "worse", "lower", "higher"]:
        """Return what a variant is whose numbers are `ratio` times those of its baseline, where they do differ."""
        if self.better is None:
            return "lower" if ratio < 1 else "higher"
        return "better" if (ratio < 1) == (self.better == "lower") else "worse"


def _better(column: str) -> Literal["lower", "higher"] | None:
    if column in _HIGHER:
        return "higher"
    return "lower" if column in _LOWER or column.endswith(("_s", "_bytes")) else None


METRICS = {name: Metric(name, _better(name)) for name, kind in field_types(RunRecord).items() if kind in (int, float)}
STEP_TIME = METRICS["step_time_p50_s"]


def metric_of(column: str) -> Metric:
    """Return the metric of a column. Raises: UsageError for one that is not there, or holds no numbers."""
    if column not in METRICS:
        hint = did_you_mean(column, METRICS)
        use = f"use a column of numbers, such as {', '.join(MOST_ASKED[:3])} (all are in docs/columns.md)"
        raise UsageError(f"--metric {column} is not a column of numbers{hint}: {use}")
    return METRICS[column]


def usual(runs: Sequence[RunRecord]) -> Metric:
    """Return what runs are judged by where nothing is said: time to a loss where all good ones were to reach one."""
    good = [run for run in runs if run.status == "ok"]
    asked = bool(good) and all(run.until_loss is not None for run in good)
    return METRICS["time_to_loss_s" if asked else "step_time_p50_s"]


def metric_within(percent: float | None, *, to_loss: bool) -> Metric | None:
    """Return step times, or times until a loss is reached, with this margin of equivalence; None without one."""
    column = "time_to_loss_s" if to_loss else "step_time_p50_s"
    return None if percent is None else replace(METRICS[column], within=percent / 100)
