"""What interruptions cost: counts that survive the processes which they are about."""

import json
import time
from pathlib import Path

import pytest

from paralab.console import clock as measure_clock
from paralab.console.clock import Moment
from paralab.records.log import StepRecord
from paralab.training.goodput import FILE, Pulse, RunProgress, read_progress


class Clock:
    """The clocks of a machine, set by hand. day_s: how far the time of day is ahead of the monotonic one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.day_s, self.boot = 1000.0, 1e9, "one"
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "time", lambda: self.now_s + self.day_s)
        monkeypatch.setattr(measure_clock, "_boot", lambda: self.boot)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def start(folder: Path, clock: Clock, *, step: int, launch: str | None = "a", processes: int = 3) -> Pulse:
    return Pulse(folder, launch=launch, began=Moment.now(), processes=processes, step=step, goes_on=True)


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
    clock.now_s += 5
    take(start(tmp_path, clock, step=3), clock, 4)
    assert progress(tmp_path).recovery_s == 21 + 6, "of all restarts together"


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


def test_a_start_from_an_older_checkpoint_than_the_first_counts_from_there(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=10), clock, 11)  # and is killed
    take(start(tmp_path, clock, step=5), clock, 6, 7)
    assert (progress(tmp_path).first_step, progress(tmp_path).steps_lost) == (5, 6)
    ahead = start(tmp_path, clock, step=9)  # from the checkpoint of another run
    assert ahead.now.steps_lost == 6, "nothing is won back"


def test_a_time_of_day_that_is_set_back_changes_no_duration(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=0), clock, 1, 2)  # and is killed
    clock.now_s += 5
    clock.day_s -= 3600
    again = start(tmp_path, clock, step=2)
    take(again, clock, 3)
    assert again.now.columns() == {"restarts": 1, "wall_s": 8, "recovery_s": 6, "steps_lost": 0}
    assert again.now.goodput_share([StepRecord(step=step, step_time_s=1.0) for step in range(3)]) == 3 / 8


@pytest.mark.parametrize(("ahead_s", "wall_s"), [(0.0, 8), (-3600.0, None)])
def test_between_machines_the_time_of_day_counts_and_one_that_goes_back_is_unknown(
    ahead_s: float, wall_s: float | None, tmp_path: Path, clock: Clock
) -> None:
    take(start(tmp_path, clock, step=0), clock, 1, 2)
    clock.now_s += 5
    clock.now_s, clock.day_s, clock.boot = 7.0, clock.day_s + clock.now_s - 7.0 + ahead_s, "two"
    again = start(tmp_path, clock, step=2)
    take(again, clock, 3)
    recovery_s = None if wall_s is None else 6
    assert again.now.columns() == {"restarts": 1, "wall_s": wall_s, "recovery_s": recovery_s, "steps_lost": 0}
    log = [StepRecord(step=step, step_time_s=1.0) for step in range(3)]
    assert again.now.goodput_share(log) == (3 / 8 if wall_s else None)


def test_a_share_above_one_is_unknown(tmp_path: Path, clock: Clock) -> None:
    pulse = start(tmp_path, clock, step=0)
    take(pulse, clock, 1)
    assert pulse.now.goodput_share([StepRecord(step=0, step_time_s=1.5)]) is None


def test_a_new_run_does_not_go_on_counting_for_one_that_died(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=0, launch=None), clock, 1, 2)
    new = Pulse(tmp_path, launch=None, began=Moment.now(), processes=1, step=0, goes_on=False)
    assert (new.now.restarts, new.now.wall_s) == (0, 0.0)


ODD = [("step", "3"), ("step", None), ("wall_s", "1"), ("restarts", 1.5), ("ended", 0), ("at", 3.0), ("at", {})]


@pytest.mark.parametrize(("name", "value"), ODD, ids=str)
def test_values_of_another_form_count_as_none(name: str, value: object, tmp_path: Path, clock: Clock) -> None:
    start(tmp_path, clock, step=0)
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(values | {name: value}))
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", json.dumps({"step": 3})])
def test_a_file_that_is_not_whole_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_progress(tmp_path) is None


def test_a_shorter_content_leaves_nothing_of_a_longer_one(tmp_path: Path, clock: Clock) -> None:
    take(start(tmp_path, clock, step=0, launch="x" * 99), clock, 1)
    start(tmp_path, clock, step=1, launch=None)
    assert progress(tmp_path).launch is None
