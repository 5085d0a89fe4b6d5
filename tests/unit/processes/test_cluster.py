"""Ranks that wait for others hear signals."""

import signal
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
import torch.distributed as dist

from paralab.processes import cluster
from paralab.processes.rank import Rank

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


def test_ranks_that_are_started_again_do_not_find_what_the_first_left_in_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun of torch 2.13 keeps its store: addresses of processes that are gone would be in it."""
    kept, begun, waits = dist.HashStore(), list[Any](), list[None]()

    def liveness(store: dist.Store, rank: int, world_size: int, **options: object) -> Any:
        begun.append(store)
        return type("Joined", (), {"join": lambda self, timeout_s: None})()

    monkeypatch.setattr(dist, "rendezvous", lambda *args, **options: iter([(kept, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, *, store, **options: begun.append(store))
    monkeypatch.setattr(cluster, "Liveness", liveness)
    monkeypatch.setattr(cluster.meeting, "check_meeting_point", lambda env: None)
    monkeypatch.setattr(cluster, "_liveness", None)
    monkeypatch.setattr(cluster, "wait_for_gloo", lambda: waits.append(None))
    for attempt in range(3):
        monkeypatch.setattr(cluster, "_joined", 0)  # in each start it is a new process
        cluster.join(Rank(0, 2, 0, 2, "torchrun", attempt=attempt))
    for attempt, store in enumerate(begun):
        assert not store.check(["address"]), attempt
        store.set("address", str(attempt))
    assert len(waits) == 3  # at the end of each process
