"""Whom the kernel's out-of-memory killer is blamed for; that it is noticed at all, tests/e2e/test_faults.py sees."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paralab.processes.launch import _said
from paralab.processes.oom_killer import OomKiller


def vmstat(folder: Path, count: int | None) -> None:
    line = "" if count is None else f"oom_kill {count}\n"
    (folder / "vmstat").write_text(f"nr_free_pages 7\n{line}thp_fault_alloc 3\n")


@pytest.mark.parametrize(("before", "after", "struck"), [(0, 0, False), (2, 3, True), (None, None, False)])
def test_it_counts_from_its_making(before: int | None, after: int | None, struck: bool, tmp_path: Path) -> None:
    vmstat(tmp_path, before)
    killer = OomKiller(tmp_path)
    vmstat(tmp_path, after)
    assert killer.has_struck is struck


def test_where_there_is_no_count_it_has_not_struck(tmp_path: Path) -> None:
    assert not OomKiller(tmp_path).has_struck


@pytest.mark.parametrize("struck", [False, True])
def test_it_is_blamed_for_sigkill_alone(struck: bool, tmp_path: Path) -> None:
    vmstat(tmp_path, 0)
    killer = OomKiller(tmp_path)
    vmstat(tmp_path, int(struck))
    ended = {0: -signal.SIGTERM, 1: -signal.SIGKILL, 2: -signal.SIGTERM}
    failures: Any = {rank: SimpleNamespace(exitcode=code) for rank, code in ended.items()}
    blame = " while the kernel killed a process because memory was short" if struck else ""
    assert str(_said(failures, tmp_path, killer)) == f"rank 1 was ended by SIGKILL{blame}"
    crashed: Any = {0: SimpleNamespace(exitcode=-signal.SIGSEGV)}
    assert str(_said(crashed, tmp_path, killer)) == "rank 0 was ended by SIGSEGV"
