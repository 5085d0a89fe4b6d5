"""Measure one training run, under any launcher, and append its result as one row to a CSV file.

    paralab run --strategy zero3 --nproc 4
    torchrun --nproc-per-node 4 benchmarks/run.py --layout tp2.pp2/1f1b/mb4

The first steps are compared with those of one process (parity), then steps are timed. The row goes to runs/results.csv,
or to the file that --out names.
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
from paralab.options import heading
from paralab.options.config import STEPS, RunConfig, option
from paralab.options.config import resolve as read_config


@dataclass(frozen=True, kw_only=True)
class CaseConfig(RunConfig):
    """One measured case."""

    parity: bool = option(True, "Prove parity: compare the first steps with those of one process", group=STEPS)
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


def main(argv: list[str]) -> int:
    """Run a case; rank 0 prints its row in short. Returns the exit status."""
    began = Moment.now()
    config = read_config(argv, config=CaseConfig, prog="paralab run", description=__doc__)
    steps = heading.joined(heading.division_of(config), f"{config.steps} steps")
    heading.show(f"running {heading.model_of(config)}: {steps}")
    from paralab.benchmarks.run_worker import run

    return run(config, began=began)


if __name__ == "__main__":
    from paralab.cli import main as paralab

    sys.exit(paralab(["run", *sys.argv[1:]]))
