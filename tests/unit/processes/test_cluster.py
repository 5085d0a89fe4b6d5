"""Ranks that wait for others hear signals."""

import signal
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType

import pytest
import torch.distributed as dist

from paralab.processes import cluster

WAIT = timedelta(seconds=4)


class HeardError(Exception):
    """Of the handler of these tests."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """Have a signal come soon, whose handler raises."""

    def hear(number: int, frame: FrameType | None) -> None:
        raise HeardError

    before = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_is_heard_while_a_rank_waits_for_one_that_does_not_come(alarm: None) -> None:
    """torch waits in C++ for all clients of its store: by itself it would end at the time limit."""
    with pytest.raises(HeardError):
        cluster.hearing(lambda: dist.TCPStore("127.0.0.1", 0, 2, is_master=True, timeout=WAIT))


def test_what_the_wait_gives_or_raises_comes_back() -> None:
    assert cluster.hearing(lambda: 3) == 3
    with pytest.raises(dist.DistNetworkError):
        cluster.hearing(lambda: dist.TCPStore("127.0.0.1", 1, 2, is_master=False, timeout=timedelta(seconds=0.1)))
