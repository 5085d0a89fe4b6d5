"""How far off predictions for this machine are: run layouts that calibration has not seen, and compare.

    python -m paralab.benchmarks.planner_here                          # everything, in about half an hour
    python -m paralab.benchmarks.planner_here --models resnet:20 --nprocs 2 --repeats 1
    python -m paralab.benchmarks.planner_here --compare                # of rows that are there already

Where the folder has no device.json, `paralab calibrate` measures the device first. Layouts run interleaved
(A B C A B C), in the same processes. It needs a machine that does nothing else: runs beside which other programs took
more than a tenth of a core are not compared. Of repeats of a layout the median counts.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from paralab.benchmarks.planner_errors import SMALLEST_GROUP, kendall, regret
from paralab.commands import calibrate
from paralab.errors import ConfigError, UsageError
from paralab.options.arguments import Parser

if TYPE_CHECKING:
    from paralab.planning.measured.device import MeasuredDevice
    from paralab.planning.measured.step import Predicted
    from paralab.records.row import RunRecord

# model:size -> samples of a step, timed steps
MODELS = {"gpt2:nano": (8, 5), "gpt2:small": (4, 3), "resnet:20": (32, 8), "diffusion:dit-mnist": (32, 8)}
LAYOUTS = {
    1: ("dp1",),
    2: ("dp2", "dp2/zero1", "dp2/zero2", "dp2/zero3", "tp2", "pp2/naive", "pp2/1f1b/mb4", "pp2/gpipe/mb2"),
    4: ("dp4", "dp4/zero2", "dp4/zero3", "tp4", "dp2.tp2", "pp4/1f1b/mb4", "dp2.pp2/1f1b/mb4"),
}
WARMUP = 2


def main(argv: Sequence[str]) -> int:
    """Measure, and compare what was measured. Returns: 0.

    Raises: DataError or ConfigError for files that are not there.
    """
    options = _parser().parse_args(list(argv))
    folder = Path(options.folder)
    if not options.compare:
        models, nprocs = options.models.split(","), [int(n) for n in options.nprocs.split(",")]
        if not (folder / "device.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            calibrate.main(["--out", str(folder / "device.json")])
        for nproc in nprocs:
            measure(folder / "rows.csv", models, nproc, repeats=options.repeats)
    print("\n".join(report(folder)))
    return 0


@dataclass(frozen=True)
class Compared:
    """One layout of one model: seconds of a step as measured (median of its runs) and as predicted.

    memory_error: of the peak of tensors of the fullest rank, as a share of what was measured; None where not measured.
    """

    model: str
    processes: int
    layout: str
    measured_s: float
    predicted_s: float
    memory_error: float | None

    @property
    def error(self) -> float:
        """The error of the predicted step time, as a share of the measured one."""
        return self.predicted_s / self.measured_s - 1


def report(folder: Path) -> Iterator[str]:
    """Yield the lines of two Markdown tables: every layout that ran undisturbed, and how well each group is ranked."""
    from paralab.benchmarks.planner_here_worker import load_file
    from paralab.measure.load import QUIET
    from paralab.planning.measured.device import read as read_device
    from paralab.records.reading import read

    device, rows = read_device(folder / "device.json"), read(folder / "rows.csv")
    loads = dict(line.split(",") for line in load_file(folder / "rows.csv").read_text(encoding="utf-8").split())
    quiet = [row for row in rows if float(loads.get(row.run_id, "inf")) <= QUIET]
    layouts = list(compare(quiet, device))
    yield f"{device.name}, {len(quiet)} of {len(rows)} runs were undisturbed"
    yield from (
        "",
        "| model | layout | measured ms | predicted ms | error | error of memory |",
        "|---|---|---:|---:|---:|---:|",
    )
    for one in layouts:
        memory = "" if one.memory_error is None else f"{one.memory_error:+.1%}"
        times = f"{one.measured_s * 1e3:.0f} | {one.predicted_s * 1e3:.0f} | {one.error:+.0%}"
        yield f"| {one.model} | {one.layout} | {times} | {memory} |"
    yield from (
        "",
        "| model | processes | layouts | mean error | Kendall tau | regret |",
        "|---|---:|---:|---:|---:|---:|",
    )
    yield from _groups(layouts)


def compare(rows: "list[RunRecord]", device: "MeasuredDevice") -> Iterator[Compared]:
    """Yield every layout of these rows that can be predicted, in the order in which they first ran."""
    from paralab.commands.own_rows import predicted_rows

    runs: dict[tuple[str, int, str], list[tuple[RunRecord, Predicted]]] = defaultdict(list)
    for row, predicted in predicted_rows(rows, device):
        runs[f"{row.model} {row.size}", row.world_size or 1, row.layout or ""].append((row, predicted))
    for (model, processes, layout), of in runs.items():
        row, predicted = of[0]
        peak = row.memory_tensors_peak_bytes
        yield Compared(
            model,
            processes,
            layout,
            measured_s=median(row.step_time_p50_s or 0.0 for row, _ in of),
            predicted_s=predicted.step_time_s,
            memory_error=predicted.memory.total / peak - 1 if peak else None,
        )


def _groups(layouts: list[Compared]) -> Iterator[str]:
    """Yield the error, the order and the regret of each model on so many processes, and of all together."""
    groups = defaultdict(list)
    for one in layouts:
        groups[one.model, str(one.processes)].append(one)
    for one in layouts:
        groups[one.model, "all"].append(one)
    for (model, processes), of in groups.items():
        measured, predicted = (np.array([[c.measured_s, c.predicted_s] for c in of])).T
        order = f"{kendall(predicted, measured):.2f}" if len(of) >= SMALLEST_GROUP else ""
        lost = f"{regret(predicted, measured):.1%}" if len(of) > 1 else ""
        error = sum(abs(one.error) for one in of) / len(of)
        yield f"| {model} | {processes} | {len(of)} | {error:.1%} | {order} | {lost} |"
    if layouts:
        error = sum(abs(one.error) for one in layouts) / len(layouts)
        yield f"| all | all | {len(layouts)} | {error:.1%} | | |"


def _parser() -> Parser:
    parser = Parser(prog="python -m paralab.benchmarks.planner_here", description=__doc__)
    parser.add_argument("--folder", default="runs/planner-here", metavar="DIR", help="Where rows and the device are")
    parser.add_argument("--models", default=",".join(MODELS), metavar="A,B,...", help="Models to run, with their sizes")
    parser.add_argument("--nprocs", default="1,2,4", metavar="N,M,...", help="Numbers of processes to run")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="Runs of each layout, interleaved")
    parser.add_argument("--compare", action="store_true", help="Measure nothing: compare the rows that are there")
    return parser


def measure(out: Path, models: Sequence[str], nproc: int, *, repeats: int) -> None:
    """Run all layouts of these models on so many processes, and append their rows to a file."""
    from paralab.benchmarks.planner_here_worker import Stop
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank
    from paralab.records.requested import Requested
    from paralab.running import task

    out.parent.mkdir(parents=True, exist_ok=True)
    works = [resolve(run) for run in runs(models, nproc)]
    stops = [
        Stop(
            work.run,
            Requested(
                strategy=work.strategy,
                nproc=nproc,
                precision=work.run.precision,
                group="planner-here",
                repeat=repeat,
                command=work.command,
                launcher=Rank.from_env().launcher,
            ),
        )
        for repeat in range(repeats)
        for work in works
    ]
    began = time.monotonic()
    task.start("paralab.benchmarks.planner_here_worker:visit", stops, str(out), nproc=nproc, config=works[0].run)
    print(f"{len(stops)} runs on {nproc} processes in {time.monotonic() - began:.0f} s, rows in {out}")


def runs(models: Sequence[str], nproc: int) -> "Iterator[Any]":
    """Yield the runs of all layouts of these models on so many processes that can be.

    Raises: ConfigError for a model that is not among those.
    """
    from paralab.layout import Layout
    from paralab.options.config import RunConfig
    from paralab.planning.resolve import resolve

    for name in models:
        if name not in MODELS:
            raise ConfigError(f"--models {name}: use some of {', '.join(MODELS)}")
        (model, size), (batch, steps) = name.split(":"), MODELS[name]
        for text in LAYOUTS[nproc]:
            try:
                run = RunConfig(
                    model=model,
                    size=size,
                    layout=Layout.parse(text),
                    global_batch_size=batch,
                    steps=steps,
                    warmup=WARMUP,
                )
                resolve(run)
            except UsageError as error:
                print(f"{name} {text} left out: {error}")
                continue
            yield run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
