"""A training run or a sweep as text that fits its terminal, from 60 columns on, drawn again at each look."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from paralab.benchmarks.watch.sweep import SweepView
from paralab.benchmarks.watch.training import TrainingView
from paralab.console.lines import duration
from paralab.console.quantities import interval_text, size_text, time_text

_WIDTH, _HEIGHT = 60, 8  # of a curve, in characters
_BESIDE = 11  # characters before a curve: its largest and its smallest number
_BAR = 30  # characters, where there is room
_WIDE = 72  # columns from which on all facts stand beside each other
_EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class _Fitted:
    """What is drawn for the columns that there are."""

    draw: Callable[[int], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.draw(options.max_width)


def training(view: TrainingView) -> RenderableType:
    """Return a training run: how far, how fast, its losses, its ranks."""
    step_s = view.step_time_s
    rows = [("loss", view.losses[-1][1] if view.losses else None, ".4f")]
    rows += [("validation", view.validation[-1][1] if view.validation else None, ".4f")]
    rows += [("gradient norm", view.grad_norm, ".3f"), ("learning rate", view.learning_rate, ".2e")]
    rows += [("samples/s", view.samples_per_s, ",.1f")]
    facts = [(name, "" if value is None else f"{value:{form}}") for name, value, form in rows]
    facts.insert(4, ("step time", "" if step_s is None else time_text(step_s)))
    parts: list[RenderableType] = [
        Text(f"{view.name}", style="bold"),
        Text(f"{view.folder}: {view.status}{_restarts(view.restarts)}{': ' + view.reason if view.reason else ''}"),
        _bar(view.done, view.total, view.left_s),
        Text(),
        _Fitted(lambda columns: Group(*map(_facts, [facts] if columns >= _WIDE else [facts[:3], facts[3:]]))),
    ]
    if len(view.losses) > 1:
        drawn = _Fitted(lambda columns: "\n".join(curve(view.losses, width=min(_WIDTH, columns - _BESIDE))))
        parts += [Text(), Text("training loss", style="dim"), drawn]
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
        lines = []
        for case in cases:
            times = case.step_times_s
            step = ["", ""]
            if times:
                step = [time_text(median(times)), interval_text((min(times), max(times))).replace(" to ", "–")]
            speed = f"{case.samples_per_s:,.1f}" if case.samples_per_s else ""
            lines.append((case.name, str(case.runs), str(case.failed), *step, speed, case.last))
        columns = ("case", "runs", "failed", "step", "range", "samples/s", "last")
        parts += [Text(), Text(work, style="dim"), _table(columns, lines, left=("case", "last"))]
    return Group(*parts)


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_row(*(Text(name, style="dim") for name, _ in facts))
    table.add_row(*(value for _, value in facts))
    return table


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
    columns = ("rank", "steps logged", "step", "waiting for data", "memory", "log written")
    lines = [
        (
            str(rank.rank),
            f"{rank.steps:,}",
            time_text(rank.step_time_s) if rank.step_time_s is not None else "",
            f"{rank.data_share:.1%}" if rank.data_share is not None else "",
            size_text(rank.memory_bytes) if rank.memory_bytes else "",
            f"{duration(rank.age_s)} ago" if rank.age_s is not None else "",
        )
        for rank in view.ranks
    ]
    return _table(columns, lines)


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], *, left: Sequence[str] = ()) -> Table:
    """Return a table whose numbers stay whole; the names of its columns and what stands at the left wrap."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        widest = max((len(line[number]) for line in lines), default=0)
        if name in left:
            table.add_column(name)
        else:
            table.add_column(name, justify="right", min_width=widest)
    for line in lines:
        table.add_row(*line)
    return table


def _bar(done: int, total: int | None, left_s: float | None, unit: str = "steps") -> RenderableType:
    of = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    said = f"{of}, about {duration(left_s)} left" if left_s is not None else of
    if not total:
        return Text(said)

    def drawn(columns: int) -> Table:
        line = Table.grid(padding=(0, 1))
        wide = max(10, min(_BAR, columns - len(said) - 2))
        line.add_row(ProgressBar(total=total, completed=done, width=wide), said)
        return line

    return _Fitted(drawn)


def _restarts(count: int) -> str:
    return f", started again {count} time{'' if count == 1 else 's'}" if count else ""
