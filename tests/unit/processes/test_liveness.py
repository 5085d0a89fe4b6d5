"""Who is blamed for a failure: by the store that all ranks reach, ranks being threads here, or processes that end."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from paralab.errors import DataError, StoppedError, WorldError
from paralab.processes import cluster, failure
from paralab.processes.failure import Progress, first_failure
from paralab.processes.liveness import Liveness, _process

LOST = RuntimeError("[/somewhere/pair.cc:547] Connection closed by peer [127.0.0.1]:1")
NO_ANSWER = RuntimeError("[/somewhere/buffer.cc:78] Timed out waiting 4000ms for recv operation to complete")


def joined(monkeypatch: pytest.MonkeyPatch, processes: list[psutil.Process]) -> list[Liveness]:
    """Return what each rank sees, one rank for each process, when all have joined."""
    store, views, threads = dist.HashStore(), [], []
    for rank, process in enumerate(processes):
        monkeypatch.setattr(psutil, "Process", lambda pid=None, process=process: process)
        liveness = Liveness(store, rank, len(processes))
        views.append(liveness)
        threads.append(threading.Thread(target=liveness.join, args=(10.0,)))
        threads[-1].start()
        while not store.check([f"paralab/joined/{rank}"]):
            pass
        monkeypatch.undo()
    for thread in threads:
        thread.join()
    return views


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def failing(monkeypatch: pytest.MonkeyPatch, liveness: Liveness, error: Exception) -> failure.Failure | None:
    monkeypatch.setattr(cluster, "_liveness", liveness)
    monkeypatch.setattr(failure, "_GRACE_S", 0.3)
    return first_failure(liveness.rank, Progress(5), error)


def test_a_rank_that_does_not_come_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    store = dist.HashStore()
    said = []

    def come(rank: int) -> None:
        with pytest.raises(WorldError) as raised:
            Liveness(store, rank, 3).join(0.5)
        said.append(str(raised.value))

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.split(",")[:2] for line in said] == [["2 of 3 ranks joined", " waiting for rank 1"]] * 2


def test_who_raises_first_tells_it_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    me = psutil.Process()
    first, second = joined(monkeypatch, [me, me])
    told = failing(monkeypatch, first, DataError("no such file"))
    assert str(told) == "rank 0 failed first at step 5: DataError: no such file"
    assert told is not None and told.exit_status == 2
    assert failing(monkeypatch, second, LOST) is None


@pytest.mark.parametrize("error", [LOST, NO_ANSWER, StoppedError(15)], ids=["lost", "no answer", "stopped"])
def test_a_peer_that_was_killed_is_named_by_whoever_notices(
    error: Exception, sleeper: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = joined(monkeypatch, [psutil.Process(), sleeper])
    sleeper.kill()
    sleeper.wait(timeout=60)  # longer than the grace of this test on a busy machine
    told = failing(monkeypatch, first, error)
    assert told is not None and (told.rank, told.step, told.status) == (1, 5, "crash")


def test_a_peer_that_is_stopped_is_named_and_ended(sleeper: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = joined(monkeypatch, [psutil.Process(), sleeper])
    sleeper.suspend()
    told = failing(monkeypatch, first, NO_ANSWER)
    assert told is not None and (told.rank, told.status) == (1, "hang") and "is stopped" in told.reason
    assert sleeper.wait(timeout=30) is not None or not sleeper.is_running()


def test_a_peer_that_has_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = joined(monkeypatch, [psutil.Process()] * 2)
    second.mark("left")
    told = failing(monkeypatch, first, LOST)
    assert told is not None and told.rank == 1 and "do all ranks have the same number of batches?" in told.reason


def test_the_peer_that_does_not_answer_is_named_and_without_one_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, third = joined(monkeypatch, [psutil.Process()] * 3)
    third.mark("waited")
    monkeypatch.setattr(Liveness, "end", lambda liveness, rank: None)
    told = failing(monkeypatch, first, NO_ANSWER)
    assert told is not None and (told.rank, told.status) == (1, "hang")

    first, second = joined(monkeypatch, [psutil.Process()] * 2)
    second.mark("waited")
    told = failing(monkeypatch, first, NO_ANSWER)
    assert told is not None and told.rank is None
    assert told.reason.startswith("all ranks waited for each other (Timed out waiting 4000ms")


def test_a_rank_that_is_stopped_before_all_have_come_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "_STOPPING_GRACE_S", 0.1)
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=60))
    liveness = Liveness(store, 0, 2)
    with pytest.raises(WorldError):
        liveness.join(0.0)
    began_s = time.monotonic()
    told = failing(monkeypatch, liveness, StoppedError(15))
    assert told is not None and (told.rank, told.reason) == (0, "stopped by SIGTERM")
    assert time.monotonic() - began_s < 30


def test_a_connection_that_broke_without_a_victim_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = joined(monkeypatch, [psutil.Process()] * 2)
    told = failing(monkeypatch, first, LOST)
    assert told is not None and told.rank is None and "do all call the same collectives?" in told.reason


def test_without_a_launcher_rank_zero_has_the_last_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Gone:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("the store's host has ended")

    me = psutil.Process()
    for rank, liveness in enumerate(joined(monkeypatch, [me, me])):
        liveness._store = Gone()  # type: ignore[assignment]
        told = failing(monkeypatch, liveness, StoppedError(15))
        assert (told is not None) == (rank == 0)


def test_a_process_of_the_same_number_that_began_later_is_another_one(sleeper: psutil.Process) -> None:
    assert _process(sleeper.pid, sleeper.create_time()) == sleeper
    assert _process(sleeper.pid, sleeper.create_time() - 10.0) is None


def test_a_rank_that_has_left_does_not_miss_itself(monkeypatch: pytest.MonkeyPatch, sleeper: psutil.Process) -> None:
    first, other = joined(monkeypatch, [psutil.Process(), sleeper])
    first.mark("left")
    assert first.lost() is None and other.lost() == (0, "left")
