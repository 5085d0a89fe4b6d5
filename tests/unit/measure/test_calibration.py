"""Measuring a device in turns: what is timed, how often, and what a disturbed moment does to it."""

import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paralab.axes.axis import Software
from paralab.layout import Layout
from paralab.measure import calibration, programs, roofline, software
from paralab.measure.calibration import Stopwatch, Turns, undisturbed
from paralab.measure.load import busy_s
from paralab.processes.pretend import pretended

CPU = torch.device("cpu")


def test_each_operation_is_timed_once_in_a_turn_by_the_program_that_has_it_first() -> None:
    watch, x = Stopwatch(budget_s=0.0, swept=False), torch.ones(64)

    def turn(program: int, *tensors: Tensor) -> None:
        watch.begin(program)
        with watch:
            for tensor in tensors:
                tensor.add(tensor)

    turn(0, x, x)
    turn(1, x, torch.ones(65))  # so close in size that it is measured already
    turn(2, torch.ones(256))
    turn(0, x)
    assert {o.bytes: len(times) for o, times in watch.times_s.items()} == {2 * 256: 2, 2 * 1024: 1}


def test_a_turn_goes_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    every = [partial(ran.append, number) for number in range(20)]
    monkeypatch.setattr(programs, "everything", lambda device, dtype: every)
    turns = Turns(CPU, {torch.float32: 1.0}, budget_s=0.0)
    turns.take(0.0)
    first = len(ran)  # of each kind something is measured, however short the time
    while len(ran) <= 20:
        turns.take(0.01)
    assert 0 < first < 20 and ran == [number % 20 for number in range(len(ran))]


def test_processors_work_for_users_the_system_and_interrupts_and_guests_count_once(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 1000 50 6 7 8 40 5\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert busy_s(tmp_path / "stat") == (100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK")
    assert busy_s(tmp_path / "none") is None


def test_a_moment_in_which_the_machine_was_busy_spoils_nothing() -> None:
    assert undisturbed([1.0, 20.0, 1.1, 20.0, 1.2, 20.0]) == 1.2


def test_all_that_axes_have_software_do_is_timed() -> None:
    with pretended(Layout.parse("dp2"), 0) as mesh:
        seconds = software.software(CPU, mesh.group("dp"))
    assert seconds.keys() == set(Software) - {Software.PIPELINE_STAGE} and min(seconds.values()) >= 0
    assert seconds[Software.SPLIT_LAYER] > 1e-5  # DTensor goes through Python for each operation
    assert seconds[Software.SHARDED_MODULE] > seconds[Software.REPLICATED_PARAMETER]


def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: said.append("wait"))
    monkeypatch.setattr(time, "perf_counter", lambda: said.append("clock") or 0.0)
    calibration._seconds(lambda: said.append("run"))
    assert said == ["clock", "run", "wait", "clock"]
    said.clear()  # one call that warms up, and no more time than for one
    roofline._best_seconds(lambda: said.append("run"), torch.device("cuda"), 0.0)
    assert said == ["run", "wait", "clock", "clock", "run", "wait", "clock"]


def test_what_is_measured_of_links_is_one_call_and_one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bytes that are sent, not of elements; work between calls is left out, and so is the first of them."""
    sent: list[int] = []
    took = {0.7: 24.0, 0.3: 8.0}  # seconds of calls amid work, and of the work alone, by their share of the time
    ran: list[int] = []
    with pretended(Layout.parse("dp2"), 0) as mesh:
        group = mesh.group("dp")
        times = calibration._times_s(partial(ran.append, 0), group, seconds=0.0)
        assert len(ran) == len(times) + 2  # one to warm up, one to see how many there is time for
        with monkeypatch.context() as patch:
            patch.setattr(calibration, "_times_s", lambda run, group, *, seconds: [took[seconds]])
            assert calibration._amid_work_s(int, group, CPU, seconds=1.0) == (24 - 8) / 8
        monkeypatch.setattr(calibration, "_times_s", lambda run, group, *, seconds: [4.0, 6.0, 20.0])
        assert {found.seconds for found in calibration.messages(group, CPU, seconds=1.0)} == {3.0}
        monkeypatch.setattr(calibration, "_amid_work_s", lambda run, *_, seconds: sent.append(run.args[0].nbytes) or 1)
        assert [found.bytes for found in calibration.all_reduces(group, CPU, seconds=1.0)] == sent


def test_an_update_is_what_one_more_parameter_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_step_s", lambda parameters, device: 5.0 + 0.25 * parameters)
    assert calibration.update_s(CPU) == 0.25
