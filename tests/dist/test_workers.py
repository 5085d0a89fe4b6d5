"""The pool of processes itself: an answer belongs to the task that was asked for."""

import time
from collections.abc import Iterator

import pytest

from paralab.processes.rank import Rank
from tests.dist.workers import WorkerPool


def late(rank: Rank, seconds: float, value: str) -> str:
    time.sleep(seconds)
    return value


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    pool.close(kill=True)


def test_after_a_test_that_ran_into_its_limit_no_late_answer_is_taken_for_the_next(pool: WorkerPool) -> None:
    def limit(timeout: float) -> None:
        raise KeyboardInterrupt  # as little an Exception as what pytest-timeout raises

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pool.outbox, "get", limit)
        pool.run("tests.dist.test_workers:late", 0.5, "late")
    assert pool.run("tests.dist.test_workers:late", 0.0, "next") == ["next", "next"]
