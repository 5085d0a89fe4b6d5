"""What a soak says at its end; that a training survives one is seen by running it (docs/soak.md)."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paralab.benchmarks import elastic, soak
from paralab.benchmarks.injection import Recovery
from paralab.benchmarks.soak import by_kind

KILLED = Recovery(
    at_s=3.0,
    step=5,
    kind="SIGKILL of the rank",
    fault="SIGKILL of the rank on node 1",
    restarts=1,
    steps_again=2,
    recovery_s=20.0,
    said="",
)


def test_kinds_are_added_up() -> None:
    stopped = replace(KILLED, kind="SIGSTOP of the rank", restarts=0, steps_again=0, recovery_s=4.4)
    faults = [KILLED, stopped, replace(KILLED, steps_again=3, recovery_s=11.0), replace(KILLED, recovery_s=90.0)]
    assert list(by_kind(faults)) == [
        ("SIGKILL of the rank", "3", "3", "7", "20 s", "90 s"),
        ("SIGSTOP of the rank", "1", "0", "0", "4 s", "4 s"),
    ]


@pytest.mark.parametrize(("command", "starts"), [(soak, "LocalNodes"), (elastic, "attempt")])
def test_a_signal_is_heard_by_the_command_line_which_says_so(
    command: Any, starts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []

    def start(*words: object, **options: object) -> None:
        heard.append(signal.getsignal(signal.SIGTERM))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, starts, start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        command.main(["--out", str(tmp_path / "soak")] if command is soak else [])
    assert heard == [before]
