"""Every error a user can cause, in one tree.

The message of each says what was got, what is needed and what to type. The command line prints it as one
line and ends with `exit_status`; no stack trace is shown for these.
"""

from collections.abc import Iterable
from difflib import get_close_matches


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


class WorldError(UsageError):
    """The processes that were started are not the ones that were asked for."""


class RankError(ParalabError):
    """A rank failed while training."""


class DivergedError(ParalabError):
    """The loss or the gradient norm stopped being finite."""


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the closest known name, or an empty string when none is close."""
    close = get_close_matches(got, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
