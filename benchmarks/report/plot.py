"""Draw results or training curves into one picture.

    paralab plot runs/bench.csv --out results.svg
    paralab plot runs/alice-ddp runs/alice-zero3 --out curves.svg

Result files (.csv) become dots, one per run: throughput by strategy, in a panel for each model of a file. Folders of
paralab train become curves: the loss of every run over its steps, held-out losses as circles, and below them how far
each run is from the first.
"""

import io
import json
import sys
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from paralab.benchmarks.report.sources import Source
from paralab.benchmarks.report.sources import load as load_results
from paralab.console.outputs import check_writable, write_whole
from paralab.errors import ConfigError, DataError, UsageError
from paralab.options.arguments import Parser
from paralab.options.files import load
from paralab.records.cells import one_line
from paralab.records.log import read_steps
from paralab.records.row import RunRecord

_FORMATS = (".svg", ".png", ".pdf")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: all eyes tell them apart


def main(argv: Sequence[str]) -> int:
    """Draw a picture. Returns: 0.

    Raises: UsageError for a file that is no picture or cannot be written; DataError for results that cannot be read.
    """
    parser = Parser(prog="paralab plot", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="FILE|FOLDER", help="Result file (.csv), or folder of a training run"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("plot.svg"),
        metavar="FILE",
        help="Picture to write: .svg, .png or .pdf (default: plot.svg)",
    )
    options = parser.parse_args(list(argv))
    if options.out.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--out {options.out} cannot be written as a picture: use a name ending in {', '.join(_FORMATS)}"
        )
    check_writable(options.out, inputs=options.sources)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        picture = _draw(options.sources, options.out.suffix.lower().removeprefix("."))
    for warning in caught:
        print(f"paralab plot: {one_line(str(warning.message))}", file=sys.stderr)
    write_whole(options.out, picture)
    print(options.out)
    return 0


def _draw(sources: Sequence[Path], form: str) -> bytes:
    folders = [source.is_dir() for source in sources]
    if any(folders) and not all(folders):
        raise UsageError("result files and folders of training do not fit one picture: give one kind")
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} is not there: give a result file or the folder of a training run")
    figure = curves(sources) if all(folders) else results(sources)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def results(files: Sequence[Path]) -> Any:
    """Return a figure with a panel for each model of a file.

    Rows are strategies (of each size, where there are several), dots are runs, colours what else differs.
    Raises: DataError where no run has succeeded.
    """
    panels = [(source.label, records) for source in load_results(files) for records in _by_model(source)]
    if not panels:
        raise DataError("no run in these files has succeeded: there is nothing to draw")
    most = max(len({(record.size, record.strategy) for record in records}) for _, records in panels)
    figure = _figure(len(panels), width=4.2, height=1.2 + 0.34 * most)
    for axes, (name, records) in zip(figure.axes, panels, strict=True):
        sizes = {record.size for record in records}
        _dots(axes, records, by_size=len(sizes) > 1)
        first = records[0]
        rate = "tokens/s" if first.tokens_per_s else f"{first.unit}/s"
        what = " ".join(str(word) for word in (first.model, *(sizes if len(sizes) == 1 else ())))
        axes.set(title=f"{name}: {what}", xlabel=f"{rate}, all processes")
    return figure


def _by_model(source: Source) -> list[list[RunRecord]]:
    """Return the runs that succeeded, one list a model."""
    good = [record for record in source.records if record.status == "ok"]
    return [[r for r in good if r.model == model] for model in dict.fromkeys(r.model for r in good)]


def _dots(axes: Any, records: list[RunRecord], *, by_size: bool) -> None:
    by_engine = len({record.engine for record in records}) > 1
    series = list(dict.fromkeys(_series(record, by_engine) for record in records))
    rows = list(dict.fromkeys(_row(record, by_size) for record in records))
    for number, label in enumerate(series):
        shift = 0.22 * (number - (len(series) - 1) / 2)
        for row, name in enumerate(rows):
            mine = [r for r in records if _row(r, by_size) == name and _series(r, by_engine) == label]
            rates = [float(r.tokens_per_s or r.samples_per_s or 0) for r in mine]
            axes.plot(rates, [row + shift] * len(rates), "o", ms=3.5, alpha=0.6, color=_COLOURS[number % 6])
            if rates:
                axes.plot(median(rates), row + shift, "|", ms=10, color=_COLOURS[number % 6])
        axes.plot([], [], "o", ms=3.5, color=_COLOURS[number % 6], label=label)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize="small")


def _row(record: RunRecord, by_size: bool) -> str:
    mark = " (parity FAILED)" if record.parity is False else ""
    return f"{record.size} {record.strategy}{mark}" if by_size else f"{record.strategy}{mark}"


def _series(record: RunRecord, by_engine: bool) -> str:
    if by_engine:
        return str(record.engine)
    return "1 process" if record.world_size == 1 else f"{record.world_size} processes"


def curves(folders: Sequence[Path]) -> Any:
    """Return a figure with a column a task: losses of its runs above, and below how far they are from the first where
    there is a second."""
    tasks = [(task, list(runs)) for task, runs in groupby(sorted(folders, key=_task), key=_task)]
    several = any(len(runs) > 1 for _, runs in tasks)
    figure = _figure(len(tasks) * (1 + several), columns=len(tasks), width=4.6, height=3.0)
    for column, (task, runs) in enumerate(tasks):
        upper = figure.axes[column]
        losses = [_losses(run) for run in runs]
        for number, (run, loss) in enumerate(zip(runs, losses, strict=True)):
            # later ones are thinner, so that one that lies on another is seen
            style = {"color": _COLOURS[number % 6], "lw": 3.5 - 0.9 * min(number, 3), "label": _label(run)}
            upper.plot(*_smooth(loss), **style)
            held_out = _held_out(run)
            upper.plot(list(held_out), list(held_out.values()), "o", ms=7 - 1.5 * min(number, 3), color=style["color"])
        upper.set(title=task, ylabel="loss (circles: held out)")
        upper.legend(frameon=False, fontsize="small")
        upper.grid(alpha=0.3)
        (figure.axes[len(tasks) + column] if len(runs) > 1 else upper).set(xlabel="step")
        if len(runs) > 1:
            _distances(figure.axes[len(tasks) + column], losses, _label(runs[0]))
        elif several:
            figure.delaxes(figure.axes[len(tasks) + column])
    return figure


def _distances(axes: Any, losses: Sequence[dict[int, float]], first: str) -> None:
    """Draw how far the losses of later runs are from those of the first, as a share of them."""
    for number, loss in enumerate(losses[1:], start=1):
        steps = sorted(loss.keys() & losses[0].keys())
        gaps = [abs(loss[s] - losses[0][s]) / abs(losses[0][s]) if losses[0][s] else float("nan") for s in steps]
        axes.plot(steps, gaps, ".", ms=1.5, color=_COLOURS[number % 6])
    axes.set(ylabel=f"relative to {first}", yscale="log")
    axes.grid(alpha=0.3)


def _smooth(loss: dict[int, float], points: int = 150) -> tuple[list[float], list[float]]:
    """Return steps and losses as means over equal parts of the run."""
    steps = sorted(loss)
    size = max(1, len(steps) // points)
    parts = [steps[i : i + size] for i in range(0, len(steps), size)]
    return [sum(part) / len(part) for part in parts], [sum(loss[s] for s in part) / len(part) for part in parts]


def _losses(folder: Path) -> dict[int, float]:
    return {r.step: r.loss for r in read_steps(folder / "log" / "rank0.jsonl") if r.loss is not None}


def _held_out(folder: Path) -> dict[int, float]:
    """Return the loss on held-out data by step. A last line that was not finished is passed over with a warning."""
    file = folder / "validation.jsonl"
    if not file.exists():
        return {}
    *lines, rest = file.read_text(encoding="utf-8", errors="replace").split("\n")
    if rest:
        warnings.warn(f"{file}: the last line is not finished and was skipped", stacklevel=2)
    found = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            step, loss = _validation(line, f"{file} line {number}")
            found[step] = loss
    return found


def _validation(line: str, place: str) -> tuple[int, float]:
    try:
        cells = json.loads(line)
        return int(cells["step"]), float(cells["loss"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{place} is no validation result ({error!r}): remove the line") from None


def _task(folder: Path) -> str:
    config = _config(folder)
    return f"{config.get('model', 'a model')} {config.get('size', '')} on {config.get('data', 'its data')}"


def _label(folder: Path) -> str:
    config = _config(folder)
    return ", ".join(str(config[key]) for key in ("strategy", "layout") if key in config) or folder.name


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.toml").exists():
        raise DataError(f"{folder} holds no config.toml: give the --out folder of paralab train")
    return load(folder / "config.toml")


def _figure(panels: int, *, width: float, height: float, columns: int = 0) -> Any:
    """Return a figure with that many axes, in rows of `columns` (of up to three when not given). Sizes in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("drawing needs matplotlib: pip install 'paralab[plot]'") from error
    columns = columns or min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    for number in range(panels):
        figure.add_subplot(rows, columns, number + 1)
    return figure
