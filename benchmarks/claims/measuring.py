"""Measuring the series of the claims: each leaves a file of rows, in which the rows of another device stay."""

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.benchmarks.claims.series import CLUSTER, Series
from paralab.errors import ParalabError
from paralab.records.reading import read
from paralab.records.writing import append

if TYPE_CHECKING:
    from paralab.benchmarks.run import CaseConfig
    from paralab.benchmarks.visits import Stop

FOLDER = Path(__file__).parents[1] / "results" / "claims"
WARMUP = 1
THREADS = 1  # of a process: several wait for each other at every operation where other programs run beside them


def measure(series: Series, folder: Path, *, repeats: int | None = None) -> None:
    """Measure a series, and put its rows in the place of those that this kind of device had in its file.

    repeats: of each case, where not those of the series. A series that fails leaves the file as it was.
    Raises: RankError for a run that fails, UsageError for what this machine cannot do.
    """
    series = series if repeats is None else replace(series, repeats=min(repeats, series.repeats))
    folder.mkdir(parents=True, exist_ok=True)
    group = f"claims-{series.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        out = Path(scratch) / f"{series.name}.csv"
        _WAYS[series.kind](series, out, group)
        _replace(folder / out.name, out)


def _replace(kept: Path, new: Path) -> None:
    """Put new rows into a file in the place of those of the same kind of device, with what others did beside them."""
    from paralab.benchmarks.visits import load_file, loads

    rows = read(new)
    device = rows[0].device
    before = [row for row in read(kept) if row.device != device] if kept.exists() else []
    others = (loads(kept) if load_file(kept).exists() else {}) | (loads(new) if load_file(new).exists() else {})
    merged = new.with_name("merged.csv")
    for row in [*before, *rows]:
        append(merged, row)
    os.replace(merged, kept)
    told = [f"{row.run_id},{others[row.run_id]:.3f}\n" for row in [*before, *rows] if row.run_id in others]
    if told:
        load_file(kept).write_text("".join(told), encoding="utf-8")


def _in_processes(series: Series, out: Path, group: str) -> None:
    from paralab.running import task

    every = list(stops(series, group))
    task.start(
        "paralab.benchmarks.visits:visit", every, str(out), 0.0, nproc=series.nproc, config=every[0].run
    )  # fmt: skip


def stops(series: Series, group: str) -> "Iterator[Stop]":
    """Yield the runs of a series, its repeats interleaved in the order that `paralab bench` draws."""
    from paralab.benchmarks.sweep.order import in_turn
    from paralab.benchmarks.visits import Stop
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank
    from paralab.records.requested import Requested

    works, rank = [resolve(config) for config in configs(series)], Rank.from_env()
    for repeat in range(series.repeats):
        for work in in_turn(works, repeat, group):
            requested = Requested.of(work.run, rank, group=group, repeat=repeat, command=work.command)
            yield Stop(work.run, requested, parity=series.parity and repeat == 0)


def configs(series: Series) -> "list[CaseConfig]":
    """Return the runs of a series, one for each case."""
    from paralab.benchmarks.run import CaseConfig
    from paralab.layout import Layout

    found = []
    for case in series.cases:
        options = {"steps": series.steps, "warmup": WARMUP, "threads": THREADS, **series.shared, **case}
        layout = Layout.parse(options.pop("layout", "dp1"))
        found.append(CaseConfig(**options, layout=layout))
    return found


def _without_devices(series: Series, out: Path, group: str) -> None:
    from paralab.benchmarks import dry_run
    from paralab.benchmarks.run import CommandConfig

    for config in configs(series):
        case = CommandConfig(**vars(config) | {"dry_run": True, "out": str(out), "group": group, "repeat": 0})
        with redirect_stdout(io.StringIO()):  # what it prints for a person
            dry_run.run(case)


def _on_clusters(series: Series, out: Path, group: str) -> None:
    from paralab.benchmarks.run import CaseConfig
    from paralab.benchmarks.scaling import run_on
    from paralab.benchmarks.sweep.order import in_turn

    shared: dict[str, Any] = {"steps": series.steps, "warmup": WARMUP, "threads": THREADS, **series.shared}
    for repeat in range(series.repeats):
        for case in in_turn(series.cases, repeat, group):
            where: dict[str, Any] = {"out": str(out), "group": group, "repeat": repeat, "parity": repeat == 0}
            run = CaseConfig(**shared, **where, strategy="single" if case["nodes"] == 1 else "ddp")
            run_on(run, case["nodes"], f"{case['bandwidth']:g}mbit", CLUSTER.cores_per_node, CLUSTER.time_limit_s)


_WAYS = {"run": _in_processes, "dry run": _without_devices, "cluster": _on_clusters}


def measure_all(every: Sequence[Series], folder: Path, *, repeats: int | None, has_gpu: bool) -> Iterator[str]:
    """Measure series after series, and yield a line about each: what was left out or failed does not end the others."""
    for number, series in enumerate(every, 1):
        which = f"{number} of {len(every)}: {series.name}"
        if series.on_gpu and not has_gpu:
            yield f"{which} left out: it needs a GPU"
            continue
        if series.kind != "run" and has_gpu:
            yield f"{which} left out: it is measured on CPUs"
            continue
        began = datetime.now(UTC)
        try:
            measure(series, folder, repeats=repeats)
        except ParalabError as error:
            yield f"{which} failed: {error}"
            continue
        yield f"{which}: {(datetime.now(UTC) - began).total_seconds():.0f} s, rows in {folder / series.name}.csv"
