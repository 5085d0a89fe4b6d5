"""The `paralab` command: finds the subcommand, runs it, and turns errors into one line and an exit status.

Nothing heavy is imported before a subcommand is chosen, so that `paralab --help` answers at once.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import FrameType

from parallel import __version__
from parallel.console import streams
from parallel.errors import ParalabError, StoppedError, UsageError, did_you_mean

# name -> what it does, and the function that does it: it takes the arguments and returns the exit status
COMMANDS = {
    "tour": ("train one model under every strategy that fits this machine, side by side", "parallel.commands:tour"),
    "run": ("run one case and append its result to a CSV file", "benchmarks.run:main"),
    "verify": ("prove that strategies compute what one process computes", "parallel.commands:verify"),
    "strategies": ("list the strategies: layout, when to use it, what it costs", "parallel.list_strategies:main"),
    "check-model": ("check a model against the rules that strategies rely on", "parallel.check_model:main"),
    "bench": ("sweep strategies, models and sizes, repeats interleaved", "benchmarks.sweep:main"),
    "compare": ("compare two result files, with a verdict", "benchmarks.compare:main"),
    "report": ("make one HTML file of result files", "benchmarks.report:main"),
    "plot": ("draw result files, or training curves, into one picture", "benchmarks.plot:main"),
    "peers": ("compare our speed with hand-written loops and transformers", "benchmarks.peers:main"),
    "elastic": ("lose a node of a training and get it back, over and over", "benchmarks.elastic:main"),
    "soak": ("hurt a training with random faults and see whether anything is lost", "benchmarks.soak:main"),
    "overhead": ("measure what measuring costs", "benchmarks.overhead:main"),
    "node": ("start this machine's part of a run on several nodes", "parallel.nodes.start:main"),
    "cluster": ("run a command on several nodes inside this machine", "parallel.nodes.box:main"),
    "scale": ("run a case on 1, 2, 3 ... nodes of such a cluster, at several link speeds", "benchmarks.scaling:main"),
    "train": ("train a model for real, with checkpoints", "parallel.train:main"),
    "export": ("write the weights of a checkpoint for Hugging Face, or as safetensors", "parallel.weights.export:main"),
    "import-deepspeed": ("take the weights of a DeepSpeed ZeRO checkpoint", "parallel.weights.import_deepspeed:main"),
    "generate": ("write on from a prompt with a trained GPT-2", "parallel.inference.generate:main"),
    "sample": ("draw samples from a trained denoiser", "parallel.inference.sample:main"),
}

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help}" for name, (help, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: paralab COMMAND [OPTION...]",
            "",
            "Train GPT-2, ResNet and diffusion models under every parallelism strategy, prove that the strategies",
            "agree, and measure what each costs.",
            "",
            "commands:",
            *lines,
            "",
            "paralab COMMAND --help lists the options of a command; paralab --version prints the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; that of the process by default).

    Returns: the exit status: that of the command, that of the ParalabError it raised, or 130 when interrupted.
    """
    streams.keep_open()
    with contextlib.suppress(ValueError):  # only the main thread hears signals
        signal.signal(signal.SIGINT, _interrupt)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
        if streams.lost:
            raise ParalabError(f"what this command printed could not be written: {streams.lost[0]}")
        return status
    except StoppedError as error:
        print(f"paralab: {error}", file=sys.stderr)
        return error.exit_status
    except ParalabError as error:
        if str(error):  # empty: the rank that failed has said it
            print(f"paralab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # a path that cannot be read or written, a disk that is full
        if error.filename is None:
            raise
        print(f"paralab: error: cannot use {error.filename}: {error.strerror}: give another path", file=sys.stderr)
        return UsageError.exit_status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is left of this process, silently
        print("paralab: interrupted", file=sys.stderr)
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; in an import, which may swallow it, end at once: nothing was started yet."""
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"paralab: interrupted\n")
            os._exit(INTERRUPTED)
        inner = inner.f_back
    raise KeyboardInterrupt


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else UsageError.exit_status
    if words[0] == "--version":
        print(f"paralab {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UsageError(f"command {name!r} is unknown{did_you_mean(name, COMMANDS)}: see paralab --help")
    if find_spec("fcntl") is None:
        raise UsageError("paralab runs on Linux and macOS, and this is neither: on Windows, install and type it in WSL")
    module, function = COMMANDS[name][1].split(":")
    return getattr(import_module(module), function)(rest)


if __name__ == "__main__":
    sys.exit(main())
