"""Command-line parser of every command: errors are UsageErrors, numbers have bounds, flags are not abbreviated."""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

from paralab.console.outputs import check_writable
from paralab.errors import UsageError, did_you_mean
from paralab.layout.strategies import STRATEGIES
from paralab.options.numbers import meant, number_of, whole_of

# What other programs call an option -> what to type here. Offered where a command has the option.
SYNONYMS = {
    **dict.fromkeys(("lr", "max-lr", "peak-lr"), "--learning-rate"),
    **dict.fromkeys(
        ("batch-size", "bs", "batch", "train-batch-size", "per-device-train-batch-size", "micro-batch-size"),
        "--global-batch-size",
    ),
    **dict.fromkeys(("epochs", "num-epochs", "num-train-epochs"), "--steps, which counts batches"),
    **dict.fromkeys(("max-steps", "iters", "max-iters", "iterations", "num-steps", "train-iters"), "--steps"),
    **dict.fromkeys(
        ("gpus", "num-gpus", "ngpus", "n-gpus", "num-processes", "nproc-per-node", "world-size", "procs", "np", "n"),
        "--nproc",
    ),
    **dict.fromkeys(("zero", "zero-stage", "stage"), "--strategy zero1, zero2 or zero3"),
    **dict.fromkeys(("fsdp", "fsdp2", "full-shard"), "--strategy zero3"),
    **dict.fromkeys(("hybrid-shard", "shard", "dp-shard", "dp-replicate"), "--strategy hsdp, or shard2 in --layout"),
    **{name: f"--strategy {name}" for name in STRATEGIES if name != "model"},  # which is an option of its own
    **{name: f"--layout {name[:1]}p2, or another degree" for name in ("tp", "pp", "dp", "cp")},
    **dict.fromkeys(("tensor-parallel-size", "tensor-model-parallel-size"), "--layout tp2, or another degree"),
    **dict.fromkeys(("pipeline-parallel-size", "pipeline-model-parallel-size"), "--layout pp2, or another degree"),
    **dict.fromkeys(("context-parallel-size", "context-parallel", "ring"), "--layout cp2/ring, or another degree"),
    **dict.fromkeys(("ulysses", "ulysses-degree"), "--layout cp2/ulysses, or another degree"),
    **dict.fromkeys(("sp", "sequence-parallel"), "--layout tp2/sp"),
    **dict.fromkeys(("fp16", "half"), "--precision fp16"),
    **dict.fromkeys(("bf16", "amp", "mixed-precision", "bfloat16"), "--precision bf16"),
    **{name: f"--precision {name}" for name in ("fp32", "fp64")},
    **dict.fromkeys(("dtype", "float", "torch-dtype"), "--precision"),
    **dict.fromkeys(
        ("gradient-accumulation-steps", "grad-accum", "accum", "accumulation-steps", "gradient-accumulation"),
        "--accumulation",
    ),
    **dict.fromkeys(("max-grad-norm", "grad-clip", "clip", "clip-grad", "gradient-clipping"), "--clip-norm"),
    **dict.fromkeys(("wd", "decay"), "--weight-decay"),
    **dict.fromkeys(("adam-eps", "epsilon", "adam-epsilon"), "--eps"),
    **dict.fromkeys(("beta1", "beta2", "adam-beta1", "adam-beta2"), "--betas 0.9,0.95"),
    **dict.fromkeys(("opt", "optim"), "--optimizer"),
    **dict.fromkeys(("scheduler", "lr-scheduler", "lr-scheduler-type", "schedule"), "--lr-schedule"),
    **dict.fromkeys(("warmup-steps", "num-warmup-steps", "warmup-iters", "lr-warmup"), "--lr-warmup-steps"),
    **dict.fromkeys(("workers", "num-workers", "dataloader-num-workers"), "--loader-workers"),
    **dict.fromkeys(
        ("gradient-checkpointing", "activation-checkpointing", "recompute", "grad-checkpoint"), "--checkpointing full"
    ),
    **dict.fromkeys(("torch-compile", "compile-model"), "--compile default"),
    **dict.fromkeys(("dataset", "data-dir", "data-path", "dataset-name", "train-data"), "--data"),
    **dict.fromkeys(("block-size", "sequence-length", "max-length", "context-length", "max-seq-len"), "--seq-len"),
    **dict.fromkeys(("output", "output-dir", "out-dir", "save-dir", "o"), "--out"),
    **dict.fromkeys(("save-steps", "save-interval", "checkpoint-every"), "--save-every"),
    **dict.fromkeys(("eval-steps", "eval-interval"), "--eval-every"),
    **dict.fromkeys(("logging-steps", "log-interval"), "--log-every"),
    **dict.fromkeys(("resume-from", "resume-from-checkpoint", "load"), "--resume"),
    **dict.fromkeys(("pretrained", "checkpoint", "from-pretrained", "model-name-or-path"), "--init-from"),
    **dict.fromkeys(("tensorboard", "trackio", "report-to"), "--log-to tensorboard"),
    **dict.fromkeys(("deepspeed-config", "deepspeed"), "--ds-config"),
    **dict.fromkeys(("config-file", "conf"), "--config"),
    **dict.fromkeys(("timeout", "timeout-seconds"), "--timeout-s"),
    **dict.fromkeys(("num-threads", "cpus"), "--threads"),
    **dict.fromkeys(("random-seed",), "--seed"),
    # names of earlier versions
    "arms": "--variants",
    "levers": "--vary",
}


def hint(got: str, known: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for a flag that is not known, or an empty string.

    known: the flags of the command. A name that other programs have goes first, then the beginning of a name, then
    one that is close.
    """
    name = got.lstrip("-").replace("_", "-").lower()
    if f"--{name}" in known:
        return f" (did you mean --{name}?)"
    typed = SYNONYMS.get(name, "")
    if typed.split()[:1] and typed.split()[0].rstrip(",") in known:
        return f" (did you mean {typed}?)"
    begun = [flag for flag in known if len(got) > 3 and flag.startswith(got)]
    return f" (did you mean {begun[0]}?)" if len(begun) == 1 else did_you_mean(got, known)


TOKENIZER_MOVED = "Tokenizer in the place of the one in the checkpoint, where its file has moved since"
MOST = 10**12  # of a whole number: what counts no bytes is far below it


class _Paragraphs(argparse.HelpFormatter):
    """Fills the paragraphs of a description, and keeps indented lines, such as examples to type, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.strip("\n").split("\n")
        paragraphs = groupby(lines, key=lambda line: not line or line.startswith(" "))
        filled = (part if kept else self._split_lines(" ".join(part), width) for kept, part in paragraphs)
        return "\n".join(indent + line for part in filled for line in part)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # --flags stay whole


class Parser(argparse.ArgumentParser):
    complaint: type[UsageError] = UsageError

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, **{"formatter_class": _Paragraphs, **options})
        self.add_argument("-h", "--help", action="help", help="Show this help and exit")

    def error(self, message: str) -> NoReturn:
        bare = re.fullmatch(r"argument (\S+): expected one argument", message)
        action = self._option_string_actions.get(bare[1]) if bare else None
        if action and action.metavar:
            message = f"{action.option_strings[0]} needs a value, {action.metavar}"
        unknown = re.fullmatch(r"unrecognized arguments: (-\S+).*", message)
        if unknown:
            flag = unknown[1].split("=")[0]
            known = [name for name in self._option_string_actions if name.startswith("--")]
            message = f"{flag} is unknown{hint(flag, known)}"
        raise self.complaint(f"{message}: see {self.prog} --help")


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return the type of a whole number of at least so much, and at most so much."""

    def read(text: str) -> int:
        number = whole_of(text)
        if number is not None and least <= number <= most:
            return number
        told = most < MOST or len(text) > len(str(MOST)) // 2
        limits = f"of at least {least}" + (f" and at most {most}" if told else "")
        is_none = f"{text[:40]!r} is not allowed{meant(text, whole=True)}"
        raise argparse.ArgumentTypeError(f"{is_none}: use a whole number {limits}")

    return read


def letters(text: str) -> str:
    """Read a text. Raises: ArgumentTypeError for bytes that are none, as of a terminal in another encoding."""
    if problem := not_text(text):
        raise argparse.ArgumentTypeError(problem)
    return text


def not_text(text: str) -> str | None:
    """Return why a word of the command line is no text, and what to do; None where it is.

    Bytes of it that this terminal's encoding lacks arrive as halves of characters, which no file of ours can hold.
    """
    if not any("\ud800" <= letter <= "\udfff" for letter in text):
        return None
    try:
        said = text.encode(errors="surrogateescape").decode()
    except UnicodeDecodeError:
        return f"{text!r} has bytes that are no UTF-8: set the terminal to UTF-8, or rename what it leads to"
    encoding = sys.getfilesystemencoding()
    return f"{said} has letters that this terminal's encoding, {encoding}, lacks: type PYTHONUTF8=1 before the command"


def new_folder(text: str) -> Path:
    """Read the path of a folder that is not there yet, or is empty, and that can be written.

    Raises: ArgumentTypeError for any other.
    """
    folder = Path(text)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise argparse.ArgumentTypeError(f"{folder} exists already: give a new folder")
        check_writable(folder / "a file", make_folders=True, advice="give a new folder in another place")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{folder} cannot be read ({error.strerror}): give a new folder") from None
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return folder


def positive(text: str) -> float:
    """Read a number above 0."""
    return _bounded(text, at_most=1e12)


def share(text: str) -> float:
    """Read a number above 0, up to 1."""
    return _bounded(text, at_most=1.0)


def positive_up_to(most: float) -> Callable[[str], float]:
    """Return what reads a number above 0, up to most."""
    return lambda text: _bounded(text, at_most=most)


def _bounded(text: str, *, at_most: float) -> float:
    number = number_of(text)
    if number is not None and 0 < number <= at_most:
        return number
    is_none = f"{text[:40]!r} is not allowed{meant(text)}"
    raise argparse.ArgumentTypeError(f"{is_none}: use a number above 0 up to {at_most:g}")


def add_checkpoint(parser: Parser, *, of: str = "") -> None:
    """Add `--checkpoint DIR`, the checkpoint that a command reads. of: what it has to be of, such as a model."""
    what = f"Checkpoint of {of}" if of else "Checkpoint to read"
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help=f"{what}: a folder RUN/step-N, or a folder RUN, whose best checkpoint is read",
    )
