"""Signals that are passed over do nothing, and what was set for them can be set again."""

import os
import signal
from pathlib import Path

from paralab.processes.pass_over import pass_over

ROOT = Path(__file__).resolve().parents[3]


def test_a_signal_that_is_passed_over_is_heard_and_does_nothing() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(AssertionError("heard")))
    try:
        pass_over([signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert callable(signal.getsignal(signal.SIGUSR1)), "one that is on its way would be complained of"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_no_other_way_of_it_is_left() -> None:
    sources = [path for room in ("parallel", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    setting = [path.name for path in sources if "signal.SIG_IGN" in path.read_text()]
    assert len(sources) > 100 and setting == []
