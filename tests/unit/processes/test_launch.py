"""What is refused before any process is started, and what is said of processes that failed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from paralab import cli
from paralab.errors import DivergedError, StoppedError, WorldError
from paralab.processes import allowed, failure, fork_server, launch
from paralab.processes.oom_killer import OomKiller
from paralab.processes.rank import Rank


def test_more_processes_than_the_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "memory_allowed_bytes", lambda: 10 * allowed.FORKED_BYTES)
    allowed.check_processes_fit(10)
    with pytest.raises(WorldError, match=r"11 processes .* hold 10 of them: use --nproc 10 or fewer"):
        allowed.check_processes_fit(11)


def test_cores_are_shared_and_a_launcher_starts_as_many_as_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "affinity", lambda: 8)
    assert [allowed.default_threads(processes) for processes in (1, 3, 16)] == [8, 2, 1]
    launch.check_started(Rank(0, 2, 0, 2, "torchrun"), 2)
    for started in (1, 4):
        with pytest.raises(WorldError, match=rf"torchrun started {started} process\(es\), 2 needed"):
            launch.check_started(Rank(0, started, 0, started, "torchrun"), 2)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():  # by hand, or left over
        monkeypatch.setenv(name, value)
    with pytest.raises(WorldError, match="WORLD_SIZE=1 are set, 2 processes needed: type env -u RANK -u WORLD_SIZE"):
        launch.check_started(Rank.from_env(), 2)


def test_sockets_that_have_no_place_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: f"/{'x' * 100}")
    with pytest.raises(WorldError, match=r"path of 101 bytes.*: type TMPDIR=/tmp"):
        launch._check_sockets_fit()


def test_ranks_are_forked_from_a_python_that_imports_nothing_from_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "copy.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    line = [sys.executable, "-c", "import copy"]
    assert subprocess.run(line, stderr=subprocess.DEVNULL).returncode == 1
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with fork_server.without_working_folder():
        assert subprocess.run(line).returncode == 0
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.parametrize(
    ("codes", "status", "said"),
    [
        ({0: 70, 1: 3}, 3, ""),  # 70: ended because another one did
        ({0: 70}, 1, ""),
        ({0: -15, 1: -9}, 1, "rank 1 was ended by SIGKILL"),
        ({0: 255, 1: 255}, 1, "the process that starts the ranks has ended"),
    ],
)
def test_of_processes_that_left_no_word_the_cause_is_told(
    codes: dict[int, int], status: int, said: str, tmp_path: Path
) -> None:
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in codes.items()}
    error = launch._said(failures, tmp_path, OomKiller(tmp_path))  # type: ignore[arg-type]
    assert error.exit_status == status and str(error).startswith(said)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (DivergedError("loss nan"), "diverged"),
        (KeyboardInterrupt(), "aborted"),
        (StoppedError(15), "aborted"),
        (RuntimeError("no"), "crash"),
    ],
)
def test_a_failure_has_the_status_of_its_error(error: BaseException, status: str) -> None:
    assert failure._status(error) == status


@pytest.mark.parametrize(("local", "here"), [(2, 2), (3, 2), (0, 5)])
def test_local_ranks_count_from_zero(local: int, here: int) -> None:
    env = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(here)}
    with pytest.raises(WorldError, match="cannot be together"):
        Rank.from_env(env)


@pytest.mark.parametrize(
    "words",
    [
        "optimise --problem logistic --methods gd --nproc 1000000",
        "run --model gpt2 --size tiny --strategy ddp --nproc 1000000 --global-batch-size 1000000 --out {}/a.csv",
        "tour --nproc 1000000",
    ],
)
def test_a_million_processes_are_not_begun(words: str, tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word.format(tmp_path) for word in words.split()]) == 2
    assert re.search("1,000,000 processes .* use --nproc", capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("when", ["before", "inside", "after"])
@pytest.mark.parametrize("number", failure.STOPS)
def test_a_signal_leaves_a_row_whenever_it_comes_and_after_the_work_ends_the_process(
    number: signal.Signals, when: str
) -> None:
    told: list[failure.Failure] = []
    heard: list[int] = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, failure.STOPS)  # as in ranks that were just forked
    try:
        if when == "before":
            signal.pthread_kill(threading.get_ident(), number)  # other threads of these tests do not block it
        with contextlib.suppress(StoppedError), failure.stopping():
            with failure.guard(Rank(0, 1, 0, 1, "python"), failure.Progress(), told.append):
                if when == "inside":
                    os.kill(os.getpid(), number)
            if when == "after":
                os.kill(os.getpid(), number)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, failure.STOPS)
        signal.signal(number, before)
    assert [(one.status, one.exit_status) for one in told] == ([] if when == "after" else [("aborted", 128 + number)])
    assert heard == ([number] if when == "after" else [])


def test_of_ranks_that_are_stopped_before_they_have_met_the_first_says_so() -> None:
    progress, stopped = failure.Progress(), StoppedError(15)
    assert failure.first_failure(1, progress, stopped) is None
    assert str(failure.first_failure(0, progress, stopped)) == "rank 0 failed first: stopped by SIGTERM"
    assert failure.first_failure(1, progress, ValueError("broken")) is not None


def test_a_second_signal_while_a_failure_is_told_changes_nothing() -> None:
    told: list[failure.Failure] = []

    def tell(first: failure.Failure) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        told.append(first)

    with contextlib.suppress(StoppedError), failure.stopping():
        with failure.guard(Rank(0, 1, 0, 1, "python"), failure.Progress(), tell):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [one.reason for one in told] == ["stopped by SIGTERM"]


def test_what_a_rank_leaves_for_its_launcher_is_never_half_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file, first = tmp_path / "error.json", failure.Failure(1, 3, "crash", "it broke", 5)
    file.touch()
    with file.open() as reader:  # as one that looks in the middle of it
        for folder in (tmp_path, tmp_path / "gone"):
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / file.name))
            failure._leave_word(first, Rank(1, 2, 1, 2, "torchrun"), ValueError("it broke"))
        assert reader.read() == ""
    assert json.loads(file.read_text())["message"]["errorCode"] == 5
    assert capfd.readouterr().err == 2 * "paralab: error: rank 1 failed first at step 3: it broke\n"
