"""The gate of docs/compare.md, as a CI job types it: the same sweep under two commands, in pairs, and a verdict."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from paralab.records.reading import read

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("paralab") is None, reason="needs the paralab command of an installation")
def test_the_gate_runs_both_sides_in_pairs_and_ends_as_compare_does(tmp_path: Path) -> None:
    words = ["paralab", "paralab", str(tmp_path), "--layouts", "dp1", "--size", "tiny", "--steps", "4", "--no-parity"]
    done = subprocess.run(
        [str(ROOT / "examples" / "performance_gate.sh"), *words],
        env=os.environ | {"REPEATS": "2"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    rows = [read(tmp_path / f"{side}.csv") for side in ("base", "head")]
    assert [[(row.group, row.repeat) for row in side] for side in rows] == [[("gate", 0), ("gate", 1)]] * 2
    starts = [[row.started_at for row in side] for side in rows]
    assert max(starts[0][0], starts[1][0]) < min(starts[0][1], starts[1][1]), (
        "the first repeat of both, then the second"
    )
    assert done.returncode == 4, "two repeats are no evidence"
    assert "columns compared, none changed" in done.stdout and (tmp_path / "report.html").stat().st_size > 10_000
