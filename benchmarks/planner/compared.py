"""Predictions for a measured device beside what was measured on it: compared, written to a small file, in tables."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING

import numpy as np

from paralab.benchmarks.planner.errors import SMALLEST_GROUP, kendall, regret

if TYPE_CHECKING:
    from paralab.planning.measured.device import MeasuredDevice
    from paralab.planning.measured.step import Predicted
    from paralab.records.row import RunRecord

PUBLISHED = Path(__file__).parents[1] / "results" / "planner" / "here" / "two-cores.csv"
CALIBRATION = PUBLISHED.with_suffix(".json")  # that its predictions were made with


@dataclass(frozen=True)
class Compared:
    """One layout of one model: seconds of a step as measured (lower median of its runs) and as predicted.

    date, processor, cores, torch: of the calibration. batch: samples of a step. runs: that were undisturbed.
    spread: how much longer the slowest of them took than the fastest, as a share.
    measured_bytes, predicted_bytes: the peak of the tensors of the fullest rank; None where it was not measured.
    """

    date: str
    processor: str
    cores: int
    torch: str
    model: str
    processes: int
    layout: str
    batch: int
    runs: int
    measured_s: float
    spread: float
    predicted_s: float
    measured_bytes: int | None
    predicted_bytes: int

    @property
    def error(self) -> float:
        """The error of the predicted step time, as a share of the measured one."""
        return self.predicted_s / self.measured_s - 1

    @property
    def memory_error(self) -> float | None:
        """The error of the predicted peak, as a share of the measured one."""
        return self.predicted_bytes / self.measured_bytes - 1 if self.measured_bytes else None


def compare(rows: "Sequence[RunRecord]", device: "MeasuredDevice") -> Iterator[Compared]:
    """Yield every layout of these rows that can be predicted, in the order in which they first ran."""
    from paralab.commands.plan_own_rows import predicted_rows

    runs: dict[tuple[str, int, str], list[tuple[RunRecord, Predicted]]] = defaultdict(list)
    for row, predicted in predicted_rows(list(rows), device):
        runs[f"{row.model} {row.size}", row.world_size or 1, row.layout or ""].append((row, predicted))
    for (model, processes, layout), of in runs.items():
        (row, predicted), times = of[0], [row.step_time_p50_s or 0.0 for row, _ in of]
        yield Compared(
            device.date,
            device.name,
            device.cores,
            device.torch,
            model,
            processes,
            layout,
            batch=row.global_batch_size or 0,
            runs=len(of),
            measured_s=round(median_low(times), 6),
            spread=round(max(times) / min(times) - 1, 3),
            predicted_s=round(predicted.step_time_s, 6),
            measured_bytes=row.memory_tensors_peak_bytes,
            predicted_bytes=round(predicted.memory.total),
        )


def write(path: Path, layouts: Iterable[Compared]) -> None:
    """Write a file of layouts, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Compared)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in layouts)


def read(path: Path) -> list[Compared]:
    """Return the layouts of a file that `write` made."""
    kinds = {"cores": int, "processes": int, "batch": int, "runs": int, "measured_s": float}
    kinds |= {"spread": float, "predicted_s": float, "measured_bytes": int, "predicted_bytes": int}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Compared(**{name: kinds.get(name, str)(text) if text else None for name, text in line.items()})  # type: ignore[arg-type]
            for line in csv.DictReader(file)
        ]


def by_layout(layouts: Sequence[Compared]) -> Iterator[str]:
    """Yield a Markdown table with a line for each layout."""
    yield "| model | layout | measured ms | predicted ms | error | error of memory |"
    yield "|---|---|---:|---:|---:|---:|"
    for one in layouts:
        memory = "" if one.memory_error is None else f"{one.memory_error:+.1%}"
        times = f"{one.measured_s * 1e3:.0f} | {one.predicted_s * 1e3:.0f} | {one.error:+.0%}"
        yield f"| {one.model} | {one.layout} | {times} | {memory} |"


def by_model(layouts: Sequence[Compared]) -> Iterator[str]:
    """Yield a Markdown table of the error, the order and the regret of each model on so many processes, and of all."""
    groups = defaultdict(list)
    for one in layouts:
        groups[one.model, str(one.processes)].append(one)
    for one in layouts:
        groups[one.model, "all"].append(one)
    yield "| model | processes | layouts | mean error | Kendall tau | regret |"
    yield "|---|---:|---:|---:|---:|---:|"
    for (model, processes), of in groups.items():
        measured, predicted = (np.array([[c.measured_s, c.predicted_s] for c in of])).T
        order = f"{kendall(predicted, measured):.2f}" if len(of) >= SMALLEST_GROUP else ""
        lost = f"{regret(predicted, measured):.1%}" if len(of) > 1 else ""
        yield f"| {model} | {processes} | {len(of)} | {_mean_error(of):.1%} | {order} | {lost} |"
    if layouts:
        yield f"| all | all | {len(layouts)} | {_mean_error(layouts):.1%} | | |"


def _mean_error(layouts: Sequence[Compared]) -> float:
    return sum(abs(one.error) for one in layouts) / len(layouts)
