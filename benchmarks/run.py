"""Measure one training run, under any launcher, and append its result as one row to a CSV file.

    paralab run --strategy zero3 --nproc 4
    torchrun --nproc-per-node 4 benchmarks/run.py --layout tp2.pp2/1f1b/mb4

The first steps are compared with those of one process (parity), then steps are timed. The row goes to runs/results.csv,
or to the file that --out names.

    paralab run --dry-run --layout dp16.tp8.pp8/mb8 --size 1.5b

takes one step of every distinct rank in this process, without values and without devices: it checks shapes, and counts
memory and bytes (docs/dry-run.md).
"""

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):  # started as a file: `paralab` is the checkout that the file lies in
    beside = Path(__file__).resolve().parent.parent
    sys.path[0] = str(beside if (beside / "parallel").is_dir() else beside.parent)  # or that of the installation
    with contextlib.suppress(ModuleNotFoundError):
        import parallel  # noqa: F401

from paralab.console.clock import Moment
from paralab.errors import ConfigError
from paralab.options import heading
from paralab.options.config import RunConfig
from paralab.options.flags import read
from paralab.options.option import PARALLELISM, STEPS, option

PERCENT = r"(\d+\.?\d*|\.\d+)%?"


def percent_of(text: str | None) -> float | None:
    """Return the number of a percentage such as 2%; None of none."""
    return None if text is None else float(text.removesuffix("%"))


@dataclass(frozen=True, kw_only=True)
class CaseConfig(RunConfig):
    """One measured case."""

    parity: bool = option(True, "Prove parity: compare the first steps with those of one process", group=STEPS)
    until_loss: float | None = option(
        None,
        "Train until this loss is reached (mean of the last 8 steps) and no longer than --steps timed steps; the time "
        "and the samples that it took are recorded",
        group=STEPS,
        above=0,
        unset="all --steps",
    )
    group: str | None = option(
        None, "Name of the sweep or experiment, kept in the column group of the row", group=STEPS, unset="none"
    )
    repeat: int | None = option(
        None,
        "Number of this repeat of the case, from 0, kept in the column repeat of the row",
        group=STEPS,
        at_least=0,
        unset="none",
    )
    until_decided: str | None = option(
        None,
        "Margin of a sweep whose repeats go on until its comparisons are decided (paralab bench --until-decided), "
        "kept in the column until_decided_percent of the row",
        group=STEPS,
        pattern=PERCENT,
        metavar="PERCENT",
        unset="none",
    )


@dataclass(frozen=True, kw_only=True)
class CommandConfig(CaseConfig):
    """What `paralab run` takes: a case to measure, or to dry-run.

    Raises: ConfigError for a GPU without a dry run.
    """

    dry_run: bool = option(
        False,
        "Take one step of every distinct rank in this process, on tensors without values: check shapes, count memory "
        "and bytes; no device is used and no time is measured",
        group=PARALLELISM,
    )
    gpu: str | None = option(
        None,
        "With --dry-run: the GPU whose memory the run should fit into, by its name in docs/planner.md",
        group=PARALLELISM,
        metavar="NAME",
        unset="none",
    )

    trace: str | None = option(
        None,
        "Trace one more step, which is not timed, on all ranks into this JSON file for Perfetto (ui.perfetto.dev) or "
        "chrome://tracing: computing and waiting, collectives by axis, passes of a pipeline, operations",
        group=STEPS,
        metavar="FILE",
        unset="none",
    )

    def __post_init__(self) -> None:
        """Check that a GPU is given for a dry run alone. Raises: ConfigError."""
        super().__post_init__()
        if self.gpu is not None and not self.dry_run:
            raise ConfigError(
                f"--gpu {self.gpu} without --dry-run: a run uses the devices of this machine, leave it out"
            )


# options of which nothing would be seen in a dry run
_TIMED = (
    "parity",
    "until_loss",
    "steps",
    "warmup",
    "trace",
    "timeout_s",
    "force",
    "threads",
    "loader_workers",
    "debug_collectives",
)


def main(argv: list[str]) -> int:
    """Run a case; rank 0 prints its row in short. Returns the exit status."""
    began = Moment.now()
    config, origins = read(argv, config=CommandConfig, prog="paralab run", description=__doc__)
    if config.dry_run:
        return _dry_run(config, [name for name in _TIMED if name in origins and origins[name].kind == "flag"])
    steps = heading.joined(heading.division_of(config), f"{config.steps} steps")
    heading.show(f"running {heading.model_of(config)}: {steps}")
    from paralab.benchmarks.run_start import run

    return run(config, began=began)


def _dry_run(config: CommandConfig, unused: list[str]) -> int:
    if unused:
        raise ConfigError(f"--{unused[0].replace('_', '-')} with --dry-run, where it changes nothing: leave it out")
    heading.show(f"dry run of {heading.model_of(config)}: {heading.division_of(config)}")
    from paralab.benchmarks.dry_run import run

    return run(config)


if __name__ == "__main__":
    from paralab.cli import main as paralab

    sys.exit(paralab(["run", *sys.argv[1:]]))
