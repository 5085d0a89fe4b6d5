"""How far a sweep is: a bar on a terminal, a line a run elsewhere."""

import sys
import time
from typing import Any

from paralab.console.lines import duration


class progress:
    """A bar on a terminal, a line a run elsewhere, with the time left at the mean of the runs so far."""

    def __init__(self, total: int, name: str) -> None:
        self.total, self.count, self.name = total, 0, name
        self.taken, self.began_s = 0, time.monotonic()
        self.bar: Any = None  # rich is imported when there is a terminal to draw on

    def __enter__(self) -> "progress":
        if sys.stderr.isatty():
            from rich.progress import Progress

            self.bar = Progress()
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total)
        return self

    def extend(self, more: int) -> None:
        """Add runs that were not known of."""
        self.total += more
        if self.bar is not None:
            self.bar.update(self.task, total=self.total)

    def advance(self, text: str, *, taken: bool = True) -> None:
        """Say that a run has ended. taken: False where its row was there before, which took no time."""
        self.count += 1
        self.taken += taken
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)
        else:
            print(f"[{self.count}/{self.total}] {text}{self._left()}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        if not self.taken or self.count == self.total:
            return ""
        each_s = (time.monotonic() - self.began_s) / self.taken
        return f"  {duration(each_s * (self.total - self.count))} left"

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
