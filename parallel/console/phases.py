"""Progress of a command on stderr: the current phase and how long it has taken. stdout is for results.

    [   0.9 s] starting 4 processes
    [   8.0 s] parity: the same steps in one process
    [  12.4 s] measuring 20 steps

On a terminal the last line has a bar that moves with each step. Elsewhere a phase that takes long gets a further line
every ten seconds, with how far it is and how much time is left:

    [  22.4 s] measuring 20 steps 8/20  15 s left

Commands whose lines are their result show their phases in passing (`transient`), and only those of two seconds or more.

The process that works shows it, with its steps, and no thread beside it: measured steps are not disturbed.
"""

import re
import shutil
import sys
import time
from typing import TextIO

from paralab.console.clock import Moment
from paralab.console.lines import duration

_REDRAW_S = 0.1  # on a terminal
_LINE_EVERY_S = 10.0  # elsewhere
_LONG_S = 2.0  # from which on a transient phase is shown
_BAR = 20  # characters
_LINE_START = "\r\x1b[K"  # and nothing right of it


class Phases:
    """Shows one phase after the other. Leave the `with` block to end the last one.

    began: the moment that times are counted from. shown: False shows nothing, as on ranks other than 0.
    transient: show a phase at its first step after two seconds, and leave no line behind on a terminal; there, one
    without a number of steps is shown as it begins. between_lines: where the lines of a table already say how far the
    command is, such a phase is shown elsewhere only after ten seconds.
    """

    def __init__(
        self,
        began: Moment,
        *,
        shown: bool = True,
        transient: bool = False,
        between_lines: bool = False,
        file: TextIO | None = None,
    ) -> None:
        self._began, self._file = began, file or sys.stderr
        self._on_terminal = self._file.isatty()
        self._transient, self._shown = transient, shown
        self._first_s = _LINE_EVERY_S if between_lines and not self._on_terminal else _LONG_S
        self._name, self._total, self._done = "", 0, 0
        self._is_out = False  # whether the phase is on the screen, or its line written
        self._at_s = self._phase_began_s = self._drawn_s = 0.0

    def __enter__(self) -> "Phases":
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def begin(self, name: str, *, total: int = 0) -> None:
        """Show what begins, after the end of what went before. total: steps of it, for a bar; 0 where unknown."""
        self.end()
        self._name, self._total, self._done = name, total, 0
        self._at_s, self._phase_began_s = self._began.elapsed_s or 0.0, time.monotonic()
        self._is_out, self._drawn_s = False, self._phase_began_s
        if not self._transient or (self._on_terminal and not total):
            self._write(self._bar() if self._on_terminal else "")

    def advance(self, steps: int = 1) -> None:
        """Take note that so many more steps of the phase are done."""
        self._done += steps
        silent_s, most_s = time.monotonic() - self._drawn_s, _REDRAW_S if self._on_terminal else _LINE_EVERY_S
        if silent_s >= (most_s if self._is_out else self._first_s):
            self._write(self._bar() if self._on_terminal else self._done_and_left())

    def end(self) -> None:
        """End the phase: its line stays without its bar, or goes away where lines are transient."""
        if self._name and self._is_out and self._on_terminal:
            left = "" if self._transient else f"{self._line(self._at_s)}\n"
            self._file.write(f"{_LINE_START}{left}")
            self._file.flush()
        self._name = ""

    def _write(self, progress: str) -> None:
        """Draw the line anew on a terminal; elsewhere write a further one, which says when it was."""
        if not self._shown:
            return
        self._is_out, self._drawn_s = True, time.monotonic()
        if self._on_terminal:
            text = self._line(self._at_s) + progress
            self._file.write(f"{_LINE_START}{text[: shutil.get_terminal_size().columns - 1]}")
        else:
            at_s = self._at_s + self._drawn_s - self._phase_began_s if progress else self._at_s
            self._file.write(f"{self._line(at_s)}{progress}\n")
        self._file.flush()

    def _line(self, at_s: float) -> str:
        return f"[{at_s:6.1f} s] {self._name}"

    def _bar(self) -> str:
        if not self._total:
            return f"  {self._done:,} done ..." if self._done else " ..."
        filled = _BAR * self._done // self._total
        return f"  [{'=' * filled}{' ' * (_BAR - filled)}]{self._done_and_left()}"

    def _done_and_left(self) -> str:
        if not self._total:
            return f"  {self._done:,} done"
        taken_s, left = time.monotonic() - self._phase_began_s, self._total - self._done
        remaining = f"  {duration(taken_s / self._done * left)} left" if self._done else ""
        return f" {self._done}/{self._total}{remaining}"


def is_phase(line: str) -> bool:
    """Return whether a line of stderr says what a command does, and not what went wrong."""
    return re.match(r"\[ *\d+\.\d s\] ", line) is not None


def hidden() -> Phases:
    """Return what shows nothing."""
    return Phases(Moment.now(), shown=False)
