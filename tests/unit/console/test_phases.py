"""What a command shows while one waits."""

import io
import re
import sys

import pytest

from paralab.commands import verify_cases as verify
from paralab.commands.verify import VerifyConfig
from paralab.console import phases
from paralab.console.clock import Moment
from paralab.console.phases import Phases, hidden, is_phase
from paralab.layout import Layout
from paralab.processes.failure import Progress
from paralab.processes.rank import Rank


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(file: io.StringIO, **options: bool) -> str:
    with Phases(Moment.now(), file=file, **options) as shown:
        shown.begin("starting")
        shown.begin("measuring", total=4)
        for _ in range(4):
            shown.advance()
    return file.getvalue()


def test_a_file_gets_a_line_when_a_phase_begins() -> None:
    lines = work(io.StringIO()).splitlines()
    assert all(map(is_phase, lines)) and not is_phase("paralab: error: [ 1.0 s] x")
    assert re.sub(r"\d+\.\d", "T", work(io.StringIO())).split("\n") == ["[   T s] starting", "[   T s] measuring", ""]


def test_a_terminal_gets_a_bar_that_moves_with_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "_REDRAW_S", 0.0)
    drawn = work(Terminal()).split("\r\x1b[K")
    bars = [line for line in drawn if "/4" in line]
    assert [re.search(r"\[(=*) *\] (\d)/4", line).groups() for line in bars] == [
        ("=" * 5 * done, str(done)) for done in range(5)
    ]
    assert "s left" in bars[1] and "s left" not in bars[0]
    assert drawn[-1].endswith("measuring\n")  # what stays


def test_a_bar_is_not_drawn_more_often_than_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter(range(10**6))
    monkeypatch.setattr(phases.time, "monotonic", lambda: 50.0 + next(now_s) * 1e-4)
    file = Terminal()
    with Phases(Moment(boot="", monotonic_s=0.0, epoch_s=0.0), file=file) as shown:
        shown.begin("measuring", total=5000)
        for _ in range(5000):  # half a second and more of that clock
            shown.advance()
    assert 4 <= file.getvalue().count("/5000") <= 12


@pytest.mark.parametrize(("step_s", "out"), [(0.25, False), (0.5, True)])
@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_transient_phase_is_shown_from_two_seconds_on(
    kind: type[io.StringIO], step_s: float, out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [50.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now_s[0])
    file = kind()
    with Phases(Moment.now(), file=file, transient=True) as shown:
        shown.begin("reading", total=6)
        for _ in range(6):
            now_s[0] += step_s
            shown.advance()
    assert ("reading" in file.getvalue()) == out
    if kind is io.StringIO:
        assert file.getvalue() == ("[   2.0 s] reading 4/6  1 s left\n" if out else "")


def test_between_lines_of_a_table_a_phase_is_shown_after_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [50.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now_s[0])
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        with Phases(Moment.now(), file=out, transient=True, between_lines=True) as shown:
            shown.begin("measuring", total=6)
            for _ in range(6):
                now_s[0] += 3.0
                shown.advance()
    assert " 1/6" in terminal.getvalue()
    assert file.getvalue() == "[  12.0 s] measuring 4/6  6 s left\n"


@pytest.mark.parametrize("transient", [False, True])
def test_without_a_terminal_a_long_phase_says_every_ten_seconds_how_far_it_is(
    transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [50.0]
    monkeypatch.setattr(phases.time, "monotonic", lambda: now_s[0])
    file = io.StringIO()
    with Phases(Moment.now(), file=file, transient=transient) as shown:
        for total in (8, 0):
            shown.begin("reading", total=total)
            for _ in range(6):
                now_s[0] += 4.0
                shown.advance()
    lines = file.getvalue().splitlines()
    assert all(map(is_phase, lines))
    said = ["[   4.0 s] reading 1/8  28 s left", "[  16.0 s] reading 4/8  16 s left"]
    said += ["[  28.0 s] reading  1 done", "[  40.0 s] reading  4 done"]
    begun = ["[   0.0 s] reading", "[  12.0 s] reading 3/8  20 s left", "[  24.0 s] reading 6/8  8 s left"]
    begun += ["[  24.0 s] reading", "[  36.0 s] reading  3 done", "[  48.0 s] reading  6 done"]
    assert lines == (said if transient else begun)


def test_verify_shows_the_case_that_it_works_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run = VerifyConfig(size="tiny", layout=Layout(), precision="fp32", global_batch_size=2, seq_len=8)
    compared = verify.prove_all(Rank(0, 1, 0, 1, "python"), Progress(), [run])
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert [line[11:] for line in drawn if line] == [
        "case 1 of 1: dp1, accumulation 1, fp32 ...",
        "data order, validation and checkpoints under dp1 ...",
    ]
    assert drawn[-1] == "" and all(result.passed for result in compared)
    assert capsys.readouterr().out.split()[:2] == ["single", "dp1"]


def test_transient_lines_leave_nothing() -> None:
    assert work(io.StringIO(), transient=True) == ""
    assert work(Terminal(), transient=True).endswith("\r\x1b[K")
    assert "\n" not in work(Terminal(), transient=True)


def test_what_is_hidden_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with hidden() as shown:
        shown.begin("measuring", total=1)
        shown.advance()
    assert capsys.readouterr() == ("", "")
    assert work(Terminal(), shown=False) == ""


def test_a_line_is_not_longer_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert max(map(len, work(Terminal()).split("\r\x1b[K"))) <= 31
