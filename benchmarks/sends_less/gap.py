"""What sending less costs in convergence: losses by samples and times by link, put together as a table and a picture.

A loss after a wall time is read off a curve of losses by samples: after so many seconds a variant has taken as many
steps as its time of a step on that link allows. What the link does to a step does not change what the step computes.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean, median
from typing import TypeVar, get_type_hints

import numpy as np

from paralab.benchmarks.report.units import plain
from paralab.errors import DataError
from paralab.pages.lines import Series, lines
from paralab.pages.page import Chart
from paralab.pages.palette import STRATEGIES
from paralab.pages.picture import picture

BASELINE = "ddp"
# colours that all eyes tell apart: those of six strategies, the baseline with its own
LOOKS = [STRATEGIES[name] for name in ("ddp", "zero1", "zero3", "tensor", "pipeline", "context")]


@dataclass(frozen=True)
class Loss:
    """The loss on held-out data of one variant from one seed after so many steps and samples."""

    method: str
    seed: int
    step: int
    samples: int
    validation_loss: float


@dataclass(frozen=True)
class Timing:
    """The mean time of some steps of one variant in one round, on a link. sent_bytes: of a rank, in a step."""

    link: str
    method: str
    round: int
    step_time_s: float
    sent_bytes: float


R = TypeVar("R", Loss, Timing)


def append(path: Path, row: Loss | Timing) -> None:
    """Append a row to a file, with a header where the file is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([[f.name for f in fields(row)]] if new else [])
        writer.writerow(astuple(row))


def read(path: Path, kind: type[R]) -> list[R]:
    """Return the rows of a file; none where it is missing. Raises: DataError for a file of another form."""
    if not path.exists():
        return []
    types = get_type_hints(kind)
    try:
        with path.open(newline="") as file:
            return [kind(**{name: of(row[name]) for name, of in types.items()}) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} holds no rows of this command ({error!r}): give a folder that it wrote") from None


class Curves:
    """Losses by step of each variant and seed, and the times of a step on each link."""

    def __init__(self, losses: Sequence[Loss], timings: Sequence[Timing]) -> None:
        self.methods = list(dict.fromkeys(row.method for row in losses))
        if BASELINE not in self.methods:
            raise DataError(
                f"there are no losses of {BASELINE}, which the others are compared with: add it to --methods"
            )
        self.seeds = sorted({row.seed for row in losses})
        self.links = list(dict.fromkeys(row.link for row in timings))
        self.batch = next(row.samples // row.step for row in losses if row.step)
        self.by_step: dict[tuple[str, int], dict[int, float]] = {}
        for row in losses:
            self.by_step.setdefault((row.method, row.seed), {})[row.step] = row.validation_loss
        self.steps = min(max(curve) for curve in self.by_step.values())
        self.times: dict[tuple[str, str], list[float]] = {}
        self.sent: dict[str, float] = {}
        for timing in timings:
            self.times.setdefault((timing.link, timing.method), []).append(timing.step_time_s)
            self.sent[timing.method] = timing.sent_bytes

    def step_s(self, link: str, method: str) -> float:
        """Return the median over rounds of the seconds of a step."""
        return median(self.times[link, method])

    def loss(self, method: str, seed: int, step: float) -> float:
        """Return the loss after so many steps, between two evaluations on the straight line through them."""
        curve = sorted(self.by_step[method, seed].items())
        return float(np.interp(step, [x for x, _ in curve], [y for _, y in curve]))

    def gaps(self, steps: Mapping[str, float], method: str) -> list[float]:
        """Return of each seed how much larger a method's loss is than the baseline's. steps: taken, by method."""
        return [self.loss(method, s, steps[method]) - self.loss(BASELINE, s, steps[BASELINE]) for s in self.seeds]

    def window_s(self, link: str) -> float:
        """Return the seconds in which the fastest method takes all steps that there are losses of."""
        return self.steps * min(self.step_s(link, method) for method in self.methods)

    def steps_within(self, link: str) -> dict[str, float]:
        """Return how many steps each method takes in those seconds."""
        return {method: self.window_s(link) / self.step_s(link, method) for method in self.methods}

    @property
    def target(self) -> float:
        """The lowest loss that all methods reach, as means over seeds."""
        return max(min(self.mean_loss(m, s) for s in self.evaluated(m)) for m in self.methods)

    def evaluated(self, method: str) -> list[int]:
        """Return the steps after which the loss is known from every seed."""
        return sorted(set.intersection(*(set(self.by_step[method, seed]) for seed in self.seeds)))

    def mean_loss(self, method: str, step: float) -> float:
        """Return the mean over seeds of the loss after so many steps."""
        return mean(self.loss(method, seed, step) for seed in self.seeds)

    def steps_to(self, method: str, loss: float) -> float:
        """Return after how many steps the mean loss first is as low as that, on the line between two evaluations."""
        before = 0
        for step in self.evaluated(method):
            there = self.mean_loss(method, step)
            if there <= loss:
                above = self.mean_loss(method, before)
                share = (above - loss) / (above - there) if above > there else 1.0
                return before + share * (step - before)
            before = step
        return float("nan")


def table(curves: Curves) -> str:
    """Return what each method sends and loses for the same samples, and on each link for the same time."""
    c, full = curves, dict.fromkeys(curves.methods, float(curves.steps))
    lines = [
        f"After {c.steps * c.batch:,} samples ({c.steps} steps of {c.batch}), {len(c.seeds)} seeds: "
        "mean [least, largest]",
        f"{'method':<10}{'sent KB a step':>15}{'validation loss':>17}{'gap to ' + BASELINE:>29}",
    ]
    for method in c.methods:
        sent = f"{c.sent[method] / 1e3:,.1f}" if method in c.sent else ""
        lines.append(f"{method:<10}{sent:>15}{c.mean_loss(method, c.steps):>17.4f}{_gap(c, full, method):>29}")
    for link in c.links:
        window, steps = c.window_s(link), c.steps_within(link)
        lines += [
            "",
            f"Over {link}, after {window:,.0f} s",
            f"{'method':<10}{'step s':>8}{'of ' + BASELINE:>7}{'samples/s':>10}{'loss':>8}{'gap to ' + BASELINE:>26}"
            f"{'s to':>5} {c.target:.3f}",
        ]
        for method in c.methods:
            step_s = c.step_s(link, method)
            ratio = median(a / b for a, b in zip(c.times[link, method], c.times[link, BASELINE], strict=False))
            lines.append(
                f"{method:<10}{step_s:>8.3f}{ratio:>7.2f}{c.batch / step_s:>10.1f}"
                f"{c.mean_loss(method, steps[method]):>8.3f}{_gap(c, steps, method):>26}"
                f"{c.steps_to(method, c.target) * step_s:>11.0f}"
            )
    return "\n".join(lines)


def _gap(curves: Curves, steps: Mapping[str, float], method: str) -> str:
    if method == BASELINE:
        return ""
    gaps = curves.gaps(steps, method)
    return f"{mean(gaps):+.3f} [{min(gaps):+.3f}, {max(gaps):+.3f}]"


def drawing(curves: Curves) -> str:
    """Return an SVG with a panel of losses by samples, and for each link one of losses by wall time."""
    c = curves
    panels = [_panel("For the same samples", "samples", c, {m: (c.steps, float(c.batch)) for m in c.methods})]
    for link in c.links:
        steps = c.steps_within(link)
        panels.append(_panel(f"Over {link}", "s", c, {m: (steps[m], c.step_s(link, m)) for m in c.methods}))
    return picture([panels], title="Validation loss of data parallelism that sends less")


def _panel(title: str, along: str, curves: Curves, shown: Mapping[str, tuple[float, float]]) -> Chart:
    """Return a chart of mean losses. shown: of each method up to which step, and how much of the axis a step is."""
    series = []
    for method, look in zip(curves.methods, LOOKS, strict=False):
        last, scale = shown[method]
        steps = [float(step) for step in curves.evaluated(method) if 0 < step < last] + [last]
        points = [(step * scale, curves.mean_loss(method, step)) for step in steps]
        series.append(Series(method, points, look=look))
    caption = f"Validation loss, mean over {len(curves.seeds)} seeds."
    return Chart(title, lines(series, title=title, unit=plain, along=along), caption)
