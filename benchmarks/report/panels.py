"""The pictures of `paralab plot`: panels of dots for result files, and of curves for folders of training."""

import json
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from paralab.benchmarks.report import stats
from paralab.benchmarks.report.figures import spread_caption
from paralab.benchmarks.report.losses import Curve, charts_of
from paralab.benchmarks.report.sources import Source
from paralab.benchmarks.report.sources import load as load_results
from paralab.benchmarks.report.units import plain
from paralab.errors import DataError
from paralab.options.files import load
from paralab.pages import charts, palette
from paralab.pages.charts import Row
from paralab.pages.page import Chart
from paralab.records.log import read_losses
from paralab.records.row import RunRecord

_COLUMNS = 3  # of panels

Panels = list[list[Chart | None]]  # rows of charts


def results(files: Sequence[Path]) -> Panels:
    """Return a panel for each model of a file, in rows.

    Its rows are strategies (of each size, where there are several), dots are runs; below each other stands what else
    differs.
    Raises: DataError where no run has succeeded.
    """
    panels = [(source.label, records) for source in load_results(files) for records in _by_model(source)]
    if not panels:
        raise DataError("no run in these files has succeeded: there is nothing to draw")
    made: list[Chart | None] = [_panel(name, records) for name, records in panels]
    return [made[i : i + _COLUMNS] for i in range(0, len(made), _COLUMNS)]


def _by_model(source: Source) -> list[list[RunRecord]]:
    """Return the runs that succeeded, one list a model."""
    good = [record for record in source.records if record.status == "ok"]
    return [[r for r in good if r.model == model] for model in dict.fromkeys(r.model for r in good)]


def _panel(name: str, records: list[RunRecord]) -> Chart:
    sizes, first = {record.size for record in records}, records[0]
    rows = _rows(records, by_size=len(sizes) > 1)
    rate = "tokens/s" if first.tokens_per_s else f"{first.unit}/s"
    what = " ".join(str(word) for word in (first.model, *(sizes if len(sizes) == 1 else ())))
    title = f"{name}: {what}"
    caption = f"{rate}, all processes. {spread_caption([row.values for row in rows])}"
    return Chart(title, charts.dots(rows, title=title, unit=plain), caption)


def _rows(records: list[RunRecord], *, by_size: bool) -> list[Row]:
    by_engine = len({record.engine for record in records}) > 1
    several = len({_series(record, by_engine) for record in records}) > 1
    found: dict[tuple[str, str], list[RunRecord]] = {}
    names = dict.fromkeys(_row(record, by_size) for record in records)
    for name in names:
        for record in records:
            if _row(record, by_size) == name:
                found.setdefault((name, _series(record, by_engine)), []).append(record)
    rows = []
    for (name, series), runs in found.items():
        rates = [float(run.tokens_per_s or run.samples_per_s or 0) for run in runs]
        look = palette.STRATEGIES.get(runs[0].strategy or "", palette.UNNAMED)
        group, label = (name, series) if several else ("", name)
        rows.append(Row(label, rates, stats.median(rates), stats.spread(rates), look, group))
    return rows


def _row(record: RunRecord, by_size: bool) -> str:
    mark = " (parity FAILED)" if record.parity is False else ""
    return f"{record.size} {record.strategy}{mark}" if by_size else f"{record.strategy}{mark}"


def _series(record: RunRecord, by_engine: bool) -> str:
    if by_engine:
        return str(record.engine)
    return "1 process" if record.world_size == 1 else f"{record.world_size} processes"


def curves(folders: Sequence[Path]) -> Panels:
    """Return a column for each task: losses of its runs above, and below how far they are from the first where there
    is a second.

    Raises: DataError where a folder is no training run, or its run has logged no loss.
    """
    columns = []
    for task, runs in groupby(sorted(folders, key=_task), key=_task):
        made = charts_of(_curves(list(runs)))
        if not made:
            raise DataError(f"no run of {task} has logged a loss: there is nothing to draw")
        columns.append([Chart(f"{task}: {made[0].title.lower()}", made[0].drawing, made[0].caption), *made[1:]])
    deepest = max(len(column) for column in columns)
    return [[column[n] if n < len(column) else None for column in columns] for n in range(deepest)]


def _curves(folders: Sequence[Path]) -> list[Curve]:
    """Return the losses of runs, the first of which is what the others are compared with."""
    names = [_label(folder) for folder in folders]
    alike = len(folders) > 1 and len(set(names)) == 1
    labels = [folder.name if alike else f"{name} ({folder.name})" if names.count(name) > 1 else name
              for name, folder in zip(names, folders, strict=True)]  # fmt: skip
    strategies = [_config(folder).get("strategy") for folder in folders]
    looks = palette.of_strategies(zip(labels, strategies, strict=True))
    return [
        Curve(label, read_losses(folder), looks[label], reference=number == 0, held_out=_held_out(folder))
        for number, (label, folder) in enumerate(zip(labels, folders, strict=True))
    ]


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
    on = f" on {data}" if (data := config.get("data")) else ""
    return f"{config.get('model', 'a model')} {config.get('size', '')}{on}"


def _label(folder: Path) -> str:
    config = _config(folder)
    return " ".join(str(config[key]) for key in ("strategy", "layout") if key in config) or folder.name


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.toml").exists():
        raise DataError(f"{folder} holds no config.toml: give the --out folder of paralab train")
    return load(folder / "config.toml")
