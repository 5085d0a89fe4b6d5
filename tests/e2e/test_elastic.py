"""A training whose nodes come and go, and the ports that stand open meanwhile."""

import json
from pathlib import Path

import pytest

from paralab.benchmarks.elastic import SAVE_EVERY, WORK, attempt, loss_difference
from paralab.commands.train import main
from tests.e2e.runner import Runner


@pytest.mark.long
def test_three_nodes_then_two_then_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tried = attempt(tmp_path / "nodes")
    row = tried.row
    assert row.layout == "dp3"
    assert row.restarts >= 2  # without node 2, and with it again; more where a start is overtaken by the next
    assert 0 < row.steps_lost <= 2 * SAVE_EVERY  # killed two steps or more after a save was begun
    assert 0 < row.recovery_s < row.wall_s
    assert 0 < row.goodput_share < 1 - row.recovery_s / row.wall_s
    assert main([*WORK, "--steps", str(tried.steps), "--strategy", "single", "--out", str(tmp_path / "alone")]) == 0
    assert loss_difference(tried.run, tmp_path / "alone", steps=tried.steps) <= 1e-5


def test_on_one_node_no_port_is_open_to_others(runner: Runner, tmp_path: Path) -> None:
    assert runner.run("launch", "2", "listening", str(tmp_path / "found.json"), folder=tmp_path) == 0, runner.errors()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["processes"] >= 3  # the launcher and two ranks
    assert found["addresses"], "gloo listens, or this test looks in the wrong place"
    assert set(found["addresses"]) == {"127.0.0.1"}
