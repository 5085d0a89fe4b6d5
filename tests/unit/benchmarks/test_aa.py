"""A case that is compared with itself: what the table counts, and that the runs of both sides are made."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from paralab.benchmarks.aa import Run, judged, main, read
from paralab.errors import DataError

START = datetime(2025, 1, 1, tzinfo=UTC)


def made(comparisons: int, *, noise: float, slower: float = 1.0) -> list[Run]:
    """Return runs of two sides, the second of which takes `slower` times as long."""
    rng, found = np.random.default_rng(0), []
    for number in range(comparisons):
        for place in range(20):
            side = "ABBA"[place % 4]  # noise that does not last does not care
            time_s = 0.1 * (slower if side == "B" else 1.0) * float(np.exp(rng.normal(0, noise)))
            started = (START + timedelta(seconds=place)).isoformat()
            found.append(Run(number, place // 2, side, started, time_s))
    return found


def cells(lines: list[str], name: str, truth: str) -> list[float]:
    (line,) = [line for line in lines if line.startswith(name) and truth in line]
    return [float(cell.rstrip("%")) for cell in line.split()[-3:]]


def test_equal_sides_seldom_differ_and_five_percent_are_found() -> None:
    lines, status = judged(made(40, noise=0.015))
    assert re.match(r"40 comparisons; the ratio of a pair has a standard deviation of [12]\.\d%", lines[0])
    assert status == 0
    faster, slower, equivalent = cells(lines, "in pairs", "the same")
    assert faster + slower <= 5 and equivalent > 50
    assert cells(lines, "in pairs", "5% slower")[1] >= 90
    assert cells(lines, "in pairs", "2% slower")[2] <= 5


def test_sides_that_do_differ_fail_the_check() -> None:
    lines, status = judged(made(20, noise=0.015, slower=1.03))
    assert status == 1 and cells(lines, "in pairs", "the same")[1] > 50


def test_both_sides_are_run_in_turns_and_go_on_where_they_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--size", "2x32x4v257", "--seq-len", "16", "--repeats", "6", "--steps", "1", "--warmup", "0"]
    words = [*small, "--out", str(tmp_path / "aa.csv")]
    main([*words, "--comparisons", "1"])
    main([*words, "--comparisons", "2"])
    runs = read(tmp_path / "aa.csv")
    orders = ["".join(run.side for run in runs[at : at + 2]) for at in range(0, 24, 2)]
    assert set(orders) == {"AB", "BA"}, "which is first is drawn"
    assert [run.comparison for run in runs] == [0] * 12 + [1] * 12
    assert all(0 < run.step_time_p50_s < 60 for run in runs)
    assert "2 comparisons" in capsys.readouterr().out


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="holds no runs of this command"):
        read(tmp_path / "x.csv")
