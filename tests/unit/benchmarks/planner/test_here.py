"""Predictions compared with what was measured on a machine: which layouts run, the tables, and the published file."""

from dataclasses import replace
from pathlib import Path

import pytest

from paralab.benchmarks.planner import compared as planner_compared
from paralab.benchmarks.planner import here as planner_here
from paralab.benchmarks.planner.compared import Compared, by_layout, by_model
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.measured.device import read
from paralab.planning.measured.imagined import imagine
from paralab.planning.measured.step import predict

ONE = Compared("2026-11-27", "a processor", 2, "2.13", "gpt2 nano", 2, "dp2", 8, 2, 0.1, 0.05, 0.11, 1000, 900)


def timed(layout: str, measured_s: float, predicted_s: float, *, processes: int = 2) -> Compared:
    return replace(ONE, layout=layout, processes=processes, measured_s=measured_s, predicted_s=predicted_s)


def test_layouts_that_cannot_be_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    every = planner_here.stops(["gpt2:small"], 4, repeats=1)
    layouts = [str(stop.run.layout) for stop in every]
    assert [stop.requested.zero for stop in every] == [stop.run.layout.zero for stop in every if stop.run.layout]
    said = capsys.readouterr().out
    assert {"dp4", "pp4/1f1b/mb4"} <= set(layouts) and len(layouts) + said.count("left out") == 7
    assert "gpt2:small tp4 left out: tp=4 does not divide n_heads=6" in said
    assert "dp2.pp2/1f1b/mb4 left out: global batch 4 does not divide" in said  # which the options refuse, not a layout


def test_a_group_has_its_error_order_and_regret() -> None:
    layouts = [timed("a", 1.0, 1.2), timed("b", 2.0, 1.0), timed("c", 3.0, 3.0), timed("d", 4.0, 4.0)]
    lines = list(by_model([*layouts, timed("e", 1.0, 1.5, processes=1)]))
    assert lines[2] == "| gpt2 nano | 2 | 4 | 17.5% | 0.67 | 100.0% |"  # b was predicted to be fastest
    assert lines[3] == "| gpt2 nano | 1 | 1 | 50.0% |  |  |" and lines[-1] == "| all | all | 5 | 24.0% | | |"
    assert list(by_layout([ONE]))[2] == "| gpt2 nano | dp2 | 100 | 110 | +10% | -10.0% |"


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    layouts = [ONE, replace(ONE, layout="dp2/zero3", measured_bytes=None)]
    planner_compared.write(tmp_path / "here" / "a.csv", layouts)
    assert planner_compared.read(tmp_path / "here" / "a.csv") == layouts


@pytest.mark.parametrize("name", ["dp2/zero3", "pp2/1f1b/mb4"])
def test_what_is_published_is_what_is_predicted_now(name: str) -> None:
    """Otherwise: python -m paralab.benchmarks.planner.here --compare --write, and the page."""
    device = read(planner_compared.CALIBRATION)
    (one,) = (
        one
        for one in planner_compared.read(planner_compared.PUBLISHED)
        if (one.model, one.layout) == ("resnet 20", name)
    )
    spec = SPECS["resnet"]
    plan = imagine(spec, spec.config("20"), Layout.parse(name), batch=one.batch, run=RunConfig())
    again = predict(plan, device)
    assert again.step_time_s == pytest.approx(one.predicted_s, rel=1e-3)
    assert again.memory.total == pytest.approx(one.predicted_bytes, rel=1e-3)
