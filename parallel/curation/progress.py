"""How much of a text is done, in percent, and work that several processes share, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context
from typing import TypeVar

from paralab.console.phases import Phases
from paralab.errors import ParalabError
from paralab.processes.with_parent import end_with_parent

A = TypeVar("A")
B = TypeVar("B")


class Percent:
    """A phase with a bar of a hundred steps. total: of what is counted; None where unknown, and there is no bar."""

    def __init__(self, phases: Phases, name: str, *, total: int | None) -> None:
        phases.begin(name, total=100 if total else 0)
        self._phases, self._total, self._done, self._shown = phases, total, 0, 0

    def add(self, count: int) -> None:
        """Take note that so much more is done."""
        self._done += count
        now = min(100, 100 * self._done // self._total) if self._total else 0
        self._phases.advance(now - self._shown)
        self._shown = now


def in_order(function: Callable[[A], B], tasks: Iterable[A], *, workers: int, apart: bool = False) -> Iterator[B]:
    """Yield what a function makes of each task, in their order; with several processes, a few tasks ahead.

    apart: whether a single worker is a process as well, so that a signal ends what computes for long without Python.
    The function and its tasks travel by pickle. Tasks are taken as they are needed, so that they may be endless.
    Raises: ParalabError where a process ends before its task, and whatever the function raises.
    """
    if workers == 1 and not apart:
        yield from map(function, tasks)
        return
    waiting: deque[Future[B]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ParalabError(
                "a worker process ended before its work did, as when memory is short: use fewer --workers; what was "
                "done is kept"
            ) from None
        except (KeyboardInterrupt, SystemExit):
            for worker in active_children():  # what it does now is done again by the next command
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
