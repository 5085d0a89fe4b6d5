"""A training run or a sweep as text of at most 100 columns, drawn again at each look."""

import math
from collections.abc import Sequence
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from paralab.benchmarks.watch.sweep import SweepView
from paralab.benchmarks.watch.training import TrainingView

_WIDTH, _HEIGHT = 60, 8  # of a curve, in characters
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def training(view: TrainingView) -> RenderableType:
    """Return a training run: how far, how fast, its losses, its ranks."""
    rows = [("loss", view.losses[-1][1] if view.losses else None, ".4f")]
    rows += [("validation", view.validation[-1][1] if view.validation else None, ".4f")]
    rows += [("gradient norm", view.grad_norm, ".3f"), ("learning rate", view.learning_rate, ".2e")]
    rows += [("step time s", view.step_time_s, ".3g"), ("samples/s", view.samples_per_s, ",.1f")]
    facts = Table.grid(padding=(0, 3))
    facts.add_row(*(Text(name, style="dim") for name, _, _ in rows))
    facts.add_row(*("" if value is None else f"{value:{form}}" for _, value, form in rows))
    parts: list[RenderableType] = [
        Text(f"{view.name}", style="bold"),
        Text(f"{view.folder}: {view.status}{_restarts(view.restarts)}{': ' + view.reason if view.reason else ''}"),
        _bar(view.done, view.total, view.left_s),
        Text(),
        facts,
    ]
    if len(view.losses) > 1:
        parts += [Text(), Text("training loss", style="dim"), Text("\n".join(curve(view.losses)))]
    if view.ranks:
        parts += [Text(), _ranks(view)]
    return Group(*parts)


def sweep(view: SweepView) -> RenderableType:
    """Return a sweep: how far, what runs now, and the cases so far."""
    at = f", {view.now_step} steps logged" if view.now_step else ""
    parts: list[RenderableType] = [
        Text(f"{view.group or view.file.name}", style="bold"),
        Text(f"{view.file}: {view.status}"),
        _bar(view.done, view.total, view.left_s, "runs"),
    ]
    parts += [Text(f"now: {view.now}{at}")] if view.now else []
    for work, cases in view.works.items():
        table = _table(("case", "left"), "runs", "failed", "step ms", "range ms", "samples/s", ("last", "left"))
        for case in cases:
            times = [1e3 * time_s for time_s in case.step_times_s]
            step = [f"{median(times):.4g}", f"{min(times):.4g} to {max(times):.4g}"] if times else ["", ""]
            speed = f"{case.samples_per_s:,.1f}" if case.samples_per_s else ""
            table.add_row(case.name, str(case.runs), str(case.failed), *step, speed, case.last)
        parts += [Text(), Text(work, style="dim"), table]
    return Group(*parts)


def curve(points: Sequence[tuple[int, float]], *, width: int = _WIDTH, height: int = _HEIGHT) -> list[str]:
    """Return lines that draw numbers over steps, with the largest, the smallest and the steps beside them.

    Each column is the mean of its share of the steps. Numbers that are not finite are left out.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    if not finite:
        return ["no finite number yet"]
    first, last = finite[0][0], finite[-1][0]
    cells: list[list[float]] = [[] for _ in range(min(width, last - first + 1))]
    for step, value in finite:
        cells[(step - first) * len(cells) // (last - first + 1)].append(value)
    columns = [sum(cell) / len(cell) if cell else None for cell in cells]
    known = [value for value in columns if value is not None]
    low, high = min(known), max(known)
    per_eighth = (high - low or 1.0) / (8 * height - 1)
    levels = [None if value is None else 1 + round((value - low) / per_eighth) for value in columns]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    lines = []
    for row in range(height):
        below = 8 * (height - 1 - row)
        drawn = "".join(" " if level is None else _EIGHTHS[max(0, min(8, level - below))] for level in levels)
        lines.append(f"{labels.get(row, ''):>9} │{drawn}")
    steps = f"{first:<{max(1, len(columns) - len(str(last)))}}{last}"
    return [*lines, f"{'':>9} └{'─' * len(columns)}", f"{'step':>9}  {steps}"]


def _ranks(view: TrainingView) -> Table:
    table = _table("rank", "steps logged", "step s", "waiting for data", "memory MiB", "log written")
    for rank in view.ranks:
        table.add_row(
            str(rank.rank),
            f"{rank.steps:,}",
            f"{rank.step_time_s:.3g}" if rank.step_time_s is not None else "",
            f"{rank.data_share:.1%}" if rank.data_share is not None else "",
            f"{rank.memory_bytes / 2**20:,.0f}" if rank.memory_bytes else "",
            f"{_duration(rank.age_s)} ago" if rank.age_s is not None else "",
        )
    return table


def _table(*columns: str | tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in columns:
        name, side = (column, "right") if isinstance(column, str) else column
        table.add_column(name, justify="left" if side == "left" else "right", no_wrap=side == "right")
    return table


def _bar(done: int, total: int | None, left_s: float | None, unit: str = "steps") -> RenderableType:
    line = Table.grid(padding=(0, 1))
    of = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    left = f", about {_duration(left_s)} left" if left_s is not None else ""
    if total:
        line.add_row(ProgressBar(total=total, completed=done, width=30), f"{of}{left}")
    else:
        line.add_row(f"{of}{left}")
    return line


def _restarts(count: int) -> str:
    return f", started again {count} time{'' if count == 1 else 's'}" if count else ""


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
