"""What other programs do meanwhile, on a clock and with counters that a test sets."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from paralab.measure import load


class Machine:
    """A machine whose processors have worked for `busy_s` by a moment, `own_s` of it for this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = self.busy_s = self.own_s = 0.0
        self.others = 0.0  # cores that other programs take while this one sleeps
        clock = SimpleNamespace(
            monotonic=lambda: self.now_s, process_time=lambda: self.own_s, sleep=lambda s: self.goes_on(s, own=0.0)
        )
        monkeypatch.setattr(load, "time", clock)
        monkeypatch.setattr(load, "busy_s", lambda: self.busy_s)

    def goes_on(self, seconds: float, *, own: float) -> None:
        self.now_s += seconds
        self.own_s += own * seconds
        self.busy_s += (own + self.others) * seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_others_are_what_the_machine_worked_without_this_process(machine: Machine) -> None:
    machine.goes_on(7.0, own=1.0)
    seen, machine.others = load.Load(), 0.75
    machine.goes_on(4.0, own=1.0)
    assert seen.others() == pytest.approx(0.75)
    machine.own_s += 10.0  # ticks are coarse: never less than none
    assert seen.others() == 0.0


@pytest.mark.parametrize(("others", "is_quiet"), [(0.09, True), (0.11, False)])
def test_a_tenth_of_a_core_is_no_longer_quiet(machine: Machine, others: float, is_quiet: bool) -> None:
    machine.others, waited = others, list[int]()
    assert load.wait_for_quiet(at_most_s=2.9, waiting=lambda: waited.append(1)) is is_quiet
    assert (machine.now_s, len(waited)) == ((0.5, 0) if is_quiet else (3.0, 5))


def test_processors_that_wait_or_work_for_a_guest_count_once(tmp_path: Path) -> None:
    """user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice: guests are in user and nice already."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 7000 500 4 5 6 90 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert load.busy_s(stat) == (100 + 20 + 30 + 4 + 5 + 6) / os.sysconf("SC_CLK_TCK")
    assert load.busy_s(tmp_path / "none") is None
