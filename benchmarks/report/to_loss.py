"""Training until a loss is reached, as MLPerf Training counts it: which steps it takes, how many samples and how long.

A loss is reached in the first step in which the mean loss of the last `WINDOW` steps is at most that loss: that of one
batch alone is a matter of luck. Time counts from the first step on, warm-up included, without what comes before it.
"""

from collections.abc import Sequence
from typing import Any

from paralab.benchmarks.report.stats import median
from paralab.console.quantities import time_text
from paralab.records.row import RunRecord

WINDOW = 8
COLUMNS = ("time_to_loss_s", "samples_to_loss", "steps_to_loss")


def steps_to(losses: Sequence[float], target: float) -> int | None:
    """Return how many steps it took to reach a loss; None where it was not reached."""
    ends = range(WINDOW, len(losses) + 1)
    return next((end for end in ends if sum(losses[end - WINDOW : end]) / WINDOW <= target), None)


def columns(
    losses: Sequence[float], times_s: Sequence[float], target: float | None, *, global_batch_size: int
) -> dict[str, Any]:
    """Return the columns about the loss that was to be reached. losses, times_s: of all steps, warm-up included."""
    steps = None if target is None else steps_to(losses, target)
    found: dict[str, Any] = {"until_loss": target, "steps_to_loss": steps}
    if steps is None:
        return found
    return found | {"samples_to_loss": steps * global_batch_size, "time_to_loss_s": sum(times_s[:steps])}


def missed(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs that were to reach a loss and did not."""
    return [run for run in runs if run.until_loss is not None and run.steps_to_loss is None]


def said(label: str, runs: Sequence[RunRecord]) -> list[str]:
    """Say for good runs of one variant whether they reached the loss that they were to reach, and after what."""
    asked = [run for run in runs if run.until_loss is not None]
    targets = ", ".join(f"{loss:g}" for loss in sorted({run.until_loss or 0.0 for run in asked}))
    lines = []
    if count := len(missed(asked)):
        lines.append(f"{label}: {count} of {len(asked)} runs did not reach loss {targets}, which counts as no time")
    reached = [run for run in asked if run.samples_to_loss is not None and run.time_to_loss_s is not None]
    if reached:
        samples = sorted({run.samples_to_loss or 0 for run in reached})
        middle = median([run.time_to_loss_s or 0.0 for run in reached])
        many = " or ".join(f"{each:,}" for each in samples)
        lines.append(f"{label}: loss {targets} after {many} samples, in {time_text(middle)} (median)")
    return lines
