"""Measure what docs/claims.md says of claims that are often taught about speed and memory.

    python -m paralab.benchmarks.claims                        # every series, in about ten minutes on two cores
    python -m paralab.benchmarks.claims checkpointing zero     # some of them
    python -m paralab.benchmarks.documents claims > docs/claims.md

The rows of each series go to a file of its name, in the place of those that this kind of device had there: a machine
with a GPU adds its own. Repeats of a series are interleaved, in the same processes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from paralab.benchmarks.claims import measuring, series
from paralab.benchmarks.programs import program
from paralab.options.arguments import Parser, whole
from paralab.processes.allowed import cores_allowed


def main(argv: Sequence[str]) -> int:
    """Measure the series that are named. Returns: 0, or 1 where one failed. Raises: UsageError for a wrong name."""
    options = _parser().parse_args(list(argv))
    chosen = series.find(options.series, max(1, int(cores_allowed())))
    from paralab.records.environment import Environment

    failed = 0
    for line in measuring.measure_all(
        chosen, options.folder, repeats=options.repeats, has_gpu=bool(Environment.read().gpu_count)
    ):
        print(line, flush=True)
        failed += " failed: " in line
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m paralab.benchmarks.claims", description=__doc__)
    parser.add_argument("series", nargs="*", metavar="SERIES", help="Series to measure (default: all)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=measuring.FOLDER,
        metavar="DIR",
        help="Folder of the files (default: benchmarks/results/claims of this checkout)",
    )
    parser.add_argument(
        "--repeats", type=whole(1), metavar="N", help="Repeats of each case, where fewer than the series has are enough"
    )
    return parser


if __name__ == "__main__":
    program(main, "claims")
