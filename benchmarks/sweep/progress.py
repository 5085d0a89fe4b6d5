"""How far a sweep is: a bar on a terminal, a line a run elsewhere."""

import sys
from typing import Any


class progress:
    """A bar on a terminal, a line a run elsewhere."""

    def __init__(self, total: int, name: str) -> None:
        self.total, self.count, self.name = total, 0, name
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

    def advance(self, text: str) -> None:
        """Say that a run has ended."""
        self.count += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)
        else:
            print(f"[{self.count}/{self.total}] {text}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
