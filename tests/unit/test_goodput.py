"""What interruptions cost: counts that survive the processes which they are about."""

import json
import time
from pathlib import Path

import pytest

from parallel.measure.goodput import FILE, Pulse, RunProgress, read_progress
from parallel.measure.record import StepRecord


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def start(folder: Path, clock: Clock, *, step: int, launch: str | None = "a", processes: int = 3) -> Pulse:
    return Pulse(folder, launch=launch, began_at=clock.now_s, processes=processes, step=step)


def take(pulse: Pulse, clock: Clock, *steps: int) -> None:
    for step in steps:
        clock.now_s += 1
        pulse.step_done(step)


def progress(folder: Path) -> RunProgress:
    found = read_progress(folder)
    assert found is not None
    return found


def test_a_start_after_a_kill_counts_what_was_lost(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=0), clock, 1, 2, 3, 4, 5)  # and is killed
    clock.now_s += 20
    again = start(tmp_path, clock, step=3, processes=2)
    assert (progress(tmp_path).restarts, progress(tmp_path).steps_lost) == (1, 2)
    take(again, clock, 4, 5, 6)
    assert progress(tmp_path).recovery_s == 21  # to the end of the first step
    clock.now_s += 4
    assert again.now.columns() == {"restarts": 1, "wall_s": 32, "recovery_s": 21, "steps_lost": 2}
    assert (progress(tmp_path).step, progress(tmp_path).processes) == (6, 2)


def test_a_start_that_dies_before_its_first_step_loses_nothing_twice(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=0), clock, 1, 2, 3)
    clock.now_s += 10
    start(tmp_path, clock, step=2)
    clock.now_s += 10
    take(start(tmp_path, clock, step=2), clock, 3)
    far = progress(tmp_path)
    assert (far.restarts, far.steps_lost, far.recovery_s) == (2, 1, 21)


@pytest.mark.parametrize(("launch", "restarts"), [("a", 1), ("b", 0), (None, 0)])
def test_after_an_end_in_order_only_the_same_launcher_goes_on_counting(
    launch: str | None, restarts: int, tmp_path: Path, clock: Clock
) -> None:
    first = start(tmp_path, clock, step=0, launch="a" if launch else None)
    take(first, clock, 1)
    first.end()
    clock.now_s += 5
    start(tmp_path, clock, step=1, launch=launch)
    assert progress(tmp_path).restarts == restarts
    assert progress(tmp_path).first_step == (0 if restarts else 1)


def test_goodput_is_the_time_in_steps_that_were_kept(tmp_path: Path, clock: Clock) -> None:
    pulse = start(tmp_path, clock, step=10)
    clock.now_s += 10
    pulse.step_done(12)
    times = [(9, 100.0), (10, 2.0), (11, 3.0), (11, 1.0), (12, 50.0)]  # before, kept, lost, taken again, not done
    log = [StepRecord(step=step, step_time_s=taken_s) for step, taken_s in times]
    assert pulse.now.goodput_share(log) == (2.0 + 1.0) / 10


@pytest.mark.parametrize("content", ["", "{", "[]", "null", json.dumps({"step": 3})])
def test_a_file_that_is_not_whole_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_progress(tmp_path) is None


def test_a_shorter_content_leaves_nothing_of_a_longer_one(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=0, launch="x" * 99), clock, 1)
    start(tmp_path, clock, step=1, launch=None)
    assert progress(tmp_path).launch is None
