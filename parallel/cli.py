"""The `paralab` command: finds the subcommand, runs it, and turns errors into one line and an exit status.

Nothing heavy is imported before a subcommand is chosen, so that `paralab --help` answers at once.
"""

import contextlib
import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from paralab import __version__
from paralab.console import signals, streams, surroundings
from paralab.errors import ParalabError, StoppedError, UsageError, did_you_mean, is_out_of_memory
from paralab.models import NAMES
from paralab.options.commands import COMMANDS

# name -> the function that does it: it takes the arguments and returns the exit status
TARGETS = {
    "tour": "paralab.benchmarks.tour:main",
    "run": "paralab.benchmarks.run:main",
    "verify": "paralab.commands.verify:main",
    "strategies": "paralab.commands.strategies:main",
    "explain": "paralab.commands.explain:main",
    "plan": "paralab.commands.plan:main",
    "predict": "paralab.commands.predict:main",
    "calibrate": "paralab.commands.calibrate:main",
    "check-model": "paralab.commands.check_model:main",
    "config": "paralab.benchmarks.config:main",
    "bench": "paralab.benchmarks.sweep.bench:main",
    "compare": "paralab.benchmarks.report.compare:main",
    "report": "paralab.benchmarks.report.report:main",
    "plot": "paralab.benchmarks.report.plot:main",
    "watch": "paralab.benchmarks.watch.watch:main",
    "peers": "paralab.benchmarks.peers:main",
    "elastic": "paralab.benchmarks.elastic:main",
    "soak": "paralab.benchmarks.soak:main",
    "overhead": "paralab.benchmarks.overhead:main",
    "node": "paralab.commands.node:main",
    "cluster": "paralab.commands.cluster:main",
    "scale": "paralab.benchmarks.scaling:main",
    "train": "paralab.commands.train:main",
    "data": "paralab.commands.data:main",
    "optimise": "paralab.commands.optimise:main",
    "export": "paralab.commands.export:main",
    "import-deepspeed": "paralab.commands.import_deepspeed:main",
    "generate": "paralab.commands.generate:main",
    "invert": "paralab.commands.invert:main",
    "probe": "paralab.commands.probe:main",
    "anomaly": "paralab.commands.anomaly:main",
    "sample": "paralab.commands.sample:main",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, a quota or `ulimit -f`: the error names no file


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help}" for name, help in COMMANDS.items()]
    return "\n".join(
        [
            "usage: paralab COMMAND [OPTION...]",
            "",
            f"Train models ({', '.join(NAMES)})",
            "under every parallelism strategy, prove that all strategies compute the same,",
            "and measure what each one costs.",
            "",
            "commands:",
            *lines,
            "",
            "paralab COMMAND --help lists the options of a command.",
            "paralab --version prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; that of the process by default).

    Returns: the exit status: that of the command, that of the ParalabError it raised, or 130 when interrupted.
    """
    streams.keep_open()
    warnings.formatwarning = _as_line
    with contextlib.suppress(ValueError):  # only the main thread hears signals
        signals.end_in_order()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            status = _dispatch(words)
        except SystemExit:  # --help
            _check_printed()
            raise
        _check_printed()
        return status
    except StoppedError as error:
        print(f"paralab: {error}", file=sys.stderr)
        return error.exit_status
    except ParalabError as error:
        if str(error):  # empty: the rank that failed has said it
            print(f"paralab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # a path that cannot be read or written, a disk that is full
        if error.errno in _FULL:
            said = f"what this command writes does not fit ({error.strerror}): make room, or choose another place"
            print(f"paralab: error: {said}", file=sys.stderr)
            return UsageError.exit_status
        if error.filename is None:
            raise
        print(f"paralab: error: cannot use {error.filename}: {error.strerror}: give another path", file=sys.stderr)
        return UsageError.exit_status
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:160] or type(error).__name__
        print(f"paralab: error: memory does not suffice ({said}): use smaller numbers", file=sys.stderr)
        return ParalabError.exit_status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is left of this process, silently
        print("paralab: interrupted", file=sys.stderr)
        return INTERRUPTED


def _as_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return what is printed of a warning: of our own without the place in the code, of others as Python does."""
    if category is UserWarning and filename.startswith(f"{os.path.dirname(__file__)}{os.sep}"):
        return f"paralab: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _check_printed() -> None:
    """Raise ParalabError where what was printed is lost, as on a disk that is full."""
    sys.stdout.flush()
    if streams.lost:
        raise ParalabError(f"what this command printed could not be written: {streams.lost[0]}")


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else UsageError.exit_status
    if words[0] == "--version":
        print(f"paralab {__version__}")
        return 0
    name, *rest = words
    if name not in TARGETS:
        raise UsageError(f"command {name!r} is unknown{did_you_mean(name, TARGETS)}: see paralab --help")
    surroundings.check()
    module, function = TARGETS[name].split(":")
    try:
        return getattr(import_module(module), function)(rest)
    except Exception as error:
        if why := surroundings.why_no_torch(error):
            raise UsageError(why) from None
        raise


if __name__ == "__main__":
    sys.exit(main())
