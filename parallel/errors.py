"""Every error a user can cause, in one tree.

The message of each says what was got, what is needed and what to type. The command line prints it as one
line and ends with `exit_status`; no stack trace is shown for these.
"""

import signal
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

# How a run ended, as its row says it; of one that was not a run, what it was.
Status = Literal["ok", "oom", "hang", "crash", "diverged", "aborted", "dry run"]
DRY: Status = "dry run"
VICTIM_EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h: of a rank that ended because another one did


class ParalabError(Exception):
    """Base of every error that paralab raises on purpose."""

    exit_status = 1


class UsageError(ParalabError):
    """A request that cannot be carried out as typed."""

    exit_status = 2


class ConfigError(UsageError):
    """A flag or a key of a configuration file is unknown, missing or has a value that is not allowed."""


class LayoutError(UsageError):
    """A layout does not fit the model, the batch or the number of processes."""


class DataError(UsageError):
    """A data set is missing, damaged or of the wrong form."""


class NewerFormatError(DataError):
    """A file is whole, and of a format that a newer version writes."""


class FolderInUseError(UsageError):
    """Another training is writing to the folder."""


class WorldError(UsageError):
    """The processes that were started are not the ones that were requested."""


class ModelError(UsageError):
    """A model breaks a rule that strategies rely on."""


class DisagreementError(UsageError):
    """Ranks of one run were asked for different things."""


class FitError(UsageError):
    """A run needs more memory than is free on this machine."""


class WriteError(ParalabError, OSError):
    """A result cannot be written, as when its disk is full."""


class RankError(ParalabError):
    """A rank failed while training. reason: why, where the message is empty because the rank has said it."""

    reason: str | None = None


class StoppedError(ParalabError):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        self.is_interruption = number == signal.SIGINT
        super().__init__("interrupted" if self.is_interruption else f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number  # as a shell reports it


class DivergedError(ParalabError):
    """The loss or the gradient norm stopped being finite."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the closest known name, or an empty string when none is close.

    Closest is one that has it between its dashes, or that it has there: llama2-7b to 7b, 50 to resnet-50.
    """
    names, got = {name.lower(): name for name in known}, got.lower()
    close = [name for name in names if got in name.split("-") or name in got.split("-")]
    close = close or get_close_matches(got, names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory", "Storage size calculation overflowed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, numpy or torch says that memory is short, of the device or of the machine."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY)
