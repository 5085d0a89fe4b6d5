"""How far off predictions for this machine are: run layouts that calibration has not seen, and compare.

    python -m paralab.benchmarks.planner.here                          # everything, in about half an hour
    python -m paralab.benchmarks.planner.here --models resnet:20 --nprocs 2 --repeats 1
    python -m paralab.benchmarks.planner.here --compare                # of rows that are there already

Where the folder has no device.json, `paralab calibrate` measures the device first. Layouts run interleaved
(A B C A B C), in the same processes. It needs a machine that does nothing else: runs beside which other programs took
more than a tenth of a core are not compared. Of repeats of a layout the median counts, of two the faster.
"""

import time
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.benchmarks.planner.compared import Compared, by_layout, by_model, compare, write
from paralab.benchmarks.programs import program
from paralab.commands import calibrate
from paralab.errors import ConfigError, UsageError
from paralab.options.arguments import Parser

if TYPE_CHECKING:
    from paralab.benchmarks.visits import Stop

# model:size -> samples of a step, timed steps
MODELS = {"gpt2:nano": (8, 5), "gpt2:small": (4, 3), "resnet:20": (32, 8), "diffusion:dit-mnist": (32, 8)}
LAYOUTS = {
    1: ("dp1",),
    2: ("dp2", "dp2/zero1", "dp2/zero2", "dp2/zero3", "tp2", "pp2/naive", "pp2/1f1b/mb4", "pp2/gpipe/mb2"),
    4: ("dp4", "dp4/zero2", "dp4/zero3", "tp4", "dp2.tp2", "pp4/1f1b/mb4", "dp2.pp2/1f1b/mb4"),
}
WARMUP = 2
WAITS_S = 60.0  # at most, before each run, until other programs leave the processors alone


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
    layouts, quiet = report(folder)
    print("\n".join([quiet, "", *by_layout(layouts), "", *by_model(layouts)]))
    if options.write:
        write(Path(options.write), layouts)
    return 0


def report(folder: Path) -> tuple[list[Compared], str]:
    """Return every layout that ran undisturbed, and a sentence on how many runs did."""
    from paralab.benchmarks.visits import loads
    from paralab.measure.load import QUIET
    from paralab.planning.measured.device import read as read_device
    from paralab.records.reading import read

    device, rows = read_device(folder / "device.json"), read(folder / "rows.csv")
    others = loads(folder / "rows.csv")
    quiet = [row for row in rows if others.get(row.run_id, inf) <= QUIET]
    return list(compare(quiet, device)), f"{device.name}: {len(quiet)} of {len(rows)} runs were undisturbed"


def _parser() -> Parser:
    parser = Parser(prog="python -m paralab.benchmarks.planner.here", description=__doc__)
    parser.add_argument("--folder", default="runs/planner-here", metavar="DIR", help="Where rows and the device are")
    parser.add_argument("--models", default=",".join(MODELS), metavar="A,B,...", help="Models to run, with their sizes")
    parser.add_argument("--nprocs", default="1,2,4", metavar="N,M,...", help="Numbers of processes to run")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="Runs of each layout, interleaved")
    parser.add_argument("--write", metavar="FILE.csv", help="Also write what was compared to a small file")
    parser.add_argument("--compare", action="store_true", help="Measure nothing: compare the rows that are there")
    return parser


def measure(out: Path, models: Sequence[str], nproc: int, *, repeats: int) -> None:
    """Run all layouts of these models on so many processes, and append their rows to a file."""
    from paralab.running import task

    out.parent.mkdir(parents=True, exist_ok=True)
    every = stops(models, nproc, repeats=repeats)
    began = time.monotonic()
    task.start("paralab.benchmarks.visits:visit", every, str(out), WAITS_S, nproc=nproc, config=every[0].run)
    print(f"{len(every)} runs on {nproc} processes in {time.monotonic() - began:.0f} s, rows in {out}")


def stops(models: Sequence[str], nproc: int, *, repeats: int) -> "list[Stop]":
    """Return the runs of all layouts of these models on so many processes, and of each its repeats, interleaved."""
    from paralab.benchmarks.visits import Stop
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank
    from paralab.records.requested import Requested

    works, rank = [resolve(run) for run in runs(models, nproc)], Rank.from_env()
    return [
        Stop(work.run, Requested.of(work.run, rank, group="planner-here", repeat=repeat, command=work.command))
        for repeat in range(repeats)
        for work in works
    ]


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
    program(main, "planner.here")
