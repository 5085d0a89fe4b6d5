"""Look at a training run or a sweep while it goes on, from its files: also over ssh, and from another machine.

    paralab watch runs/mine          # the folder of paralab train --out
    paralab watch runs/bench.csv     # the rows of a sweep

On a terminal the view is drawn again every two seconds until the run is over, or Ctrl-C ends the watching; the run
never notices. Elsewhere one view is printed, as with --once.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.console.lines import width
from paralab.options.arguments import Parser, positive

if TYPE_CHECKING:
    from rich.console import RenderableType


def main(argv: list[str]) -> int:
    """Draw until the run is over, or once. Returns: 0. Raises: DataError for what is no run, UsageError."""
    options = _parse(argv)
    files = _Watched(options.path)
    view, over = files.look()
    if options.once or not sys.stdout.isatty():
        _print(view)
        return 0
    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(view, auto_refresh=False) as live:
        while not over:
            time.sleep(options.every)
            view, over = files.look()
            live.update(view, refresh=True)
    return 0


class _Watched:
    """The files of a run of either kind."""

    def __init__(self, path: Path) -> None:
        from paralab.benchmarks.watch import screen
        from paralab.benchmarks.watch.sweep import SweepFiles
        from paralab.benchmarks.watch.training import TrainingFiles

        self._training = TrainingFiles(path) if path.is_dir() else None
        self._sweep = None if path.is_dir() else SweepFiles(path)
        self._screen = screen

    def look(self) -> "tuple[RenderableType, bool]":
        """Return the view of now, and whether the run is over."""
        if self._training is not None:
            run = self._training.look()
            return self._screen.training(run), run.is_over
        assert self._sweep is not None
        sweep = self._sweep.look()
        return self._screen.sweep(sweep), sweep.is_over


def _print(view: "RenderableType") -> None:
    """Print a view without colours; characters that the stream's encoding lacks become question marks."""
    from rich.console import Console

    console = Console(width=width(), color_system=None, legacy_windows=False, file=sys.stdout)
    with console.capture() as capture:
        console.print(view)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(capture.get().encode(encoding, errors="replace").decode(encoding))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab watch", description=__doc__)
    parser.add_argument(
        "path", type=Path, metavar="RUN", help="The folder of a training run, or the CSV file of a sweep"
    )
    parser.add_argument("--once", action="store_true", help="Print one view and end")
    parser.add_argument(
        "--every", type=positive, default=2.0, metavar="S", help="Seconds between two looks (default: 2)"
    )
    return parser.parse_args(argv)
