"""Flags of the commands that are no runs: errors are UsageErrors, numbers have bounds, nothing is abbreviated."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from parallel.errors import UsageError


class Parser(argparse.ArgumentParser):
    complaint: type[UsageError] = UsageError

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        bare = re.fullmatch(r"argument (\S+): expected one argument", message)
        action = self._option_string_actions.get(bare[1]) if bare else None
        if action and action.metavar:
            message = f"{action.option_strings[0]} needs a value, {action.metavar}"
        raise self.complaint(f"{message}: see {self.prog} --help")


def whole(least: int) -> Callable[[str], int]:
    """Return the type of a whole number of at least so much."""

    def read(text: str) -> int:
        try:
            if int(text) >= least:
                return int(text)
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: use a whole number of at least {least}")

    return read


def new_folder(text: str) -> Path:
    """Read the path of a folder that is not there yet, or is empty."""
    folder = Path(text)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise argparse.ArgumentTypeError(f"{folder} is there already: give a new folder")
    return folder


def positive(text: str) -> float:
    """Read a number above 0."""
    return _bounded(text, at_most=math.inf)


def share(text: str) -> float:
    """Read a number above 0, up to 1."""
    return _bounded(text, at_most=1.0)


def _bounded(text: str, *, at_most: float) -> float:
    try:
        if 0 < float(text) <= at_most and math.isfinite(float(text)):
            return float(text)
    except ValueError:
        pass
    limit = f" up to {at_most:g}" if math.isfinite(at_most) else ""
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed: use a number above 0{limit}")
