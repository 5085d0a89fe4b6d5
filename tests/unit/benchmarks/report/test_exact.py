"""What is counted, and not timed: one run of each shows a change, and a gate holds it."""

from dataclasses import replace
from typing import Any

import pytest

from paralab.benchmarks.report import exact
from paralab.benchmarks.report.compare import main
from paralab.benchmarks.report.comparing import compare_files
from paralab.benchmarks.report.metrics import METRICS
from paralab.records.schema import header, knows
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

CELLS = {"comm_dp_calls": 3, "comm_dp_sent_bytes": 1000.0, "memory_state_peak_bytes": 4096, "graph_breaks": 0}
STEP = METRICS["step_time_p50_s"]


def sides(**cells):
    return [run(0, **CELLS)], [run(1, **CELLS | cells)]


def test_every_exact_column_is_one_of_a_row_and_holds_numbers():
    assert set(exact.COLUMNS) <= set(header()) and set(exact.COLUMNS) <= set(METRICS)
    counted = (
        "model_flop_per_step tokens_per_step memory_state_peak_bytes predicted_state_bytes graph_breaks recompiles"
    )
    assert {*counted.split(), "samples_to_loss", "comm_tp_predicted_sent_bytes"} < set(exact.COLUMNS)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({}, []),
        ({"comm_dp_sent_bytes": 1001.0}, ["comm_dp_sent_bytes: 1,000 -> 1,001 (+0.1%)"]),
        ({"comm_tp_calls": 2}, ["comm_tp_calls: none -> 2"]),
        ({"graph_breaks": 1}, ["graph_breaks: 0 -> 1"]),
        ({"comm_dp_calls": None}, ["comm_dp_calls: 3 -> none"]),
    ],
)
def test_a_change_is_seen_at_one_run_of_each(cells, said):
    base, other = sides(**cells)
    (found,) = compare_files(base, other, STEP).comparisons
    assert list(map(str, found.changes)) == said
    assert (found.verdict, found.exact_columns) == ("insufficient", 4 + ("comm_tp_calls" in cells))


def test_what_an_older_file_does_not_know_is_no_change():
    base, other = sides(tokens_per_step=512)
    assert [change.column for change in exact.changes(base, other)] == ["tokens_per_step"]
    assert exact.changes([replace(base[0], schema=20)], other) == ()


def test_runs_with_a_parity_check_are_compared_with_runs_with_one():
    base = [run(0, **CELLS | {"parity": True, "graph_breaks": 4}), run(1, **CELLS | {"graph_breaks": 2})]
    assert exact.changes(base, [run(2, **CELLS | {"graph_breaks": 2})]) == ()
    assert exact.changes(base, [run(2, **CELLS | {"parity": True, "graph_breaks": 4})]) == ()
    (change,) = exact.changes(base, [run(2, **CELLS | {"parity": True, "graph_breaks": 2})])
    assert (change.base, change.other) == ((4,), (2,))
    both = [run(3, **CELLS | {"parity": True, "graph_breaks": 5}), run(4, **CELLS | {"graph_breaks": 2})]
    assert exact.changes(base, both) == (), "without one where both have such"


def test_the_gate_on_changes(tmp_path, capsys):
    names = ("a", "same", "other", "nothing")
    cells: tuple[dict[str, Any], ...] = (CELLS, CELLS, CELLS | {"comm_dp_sent_bytes": 900.0}, {})
    for number, (name, each) in enumerate(zip(names, cells, strict=True)):
        append(tmp_path / f"{name}.csv", run(number, **each))
    a, same, other, nothing = (str(tmp_path / f"{name}.csv") for name in names)
    assert main([a, same, "--fail-on-change"]) == 0
    assert "exact: 4 columns compared, none changed" in capsys.readouterr().out
    assert main([a, other]) == 0
    assert main([a, other, "--fail-on-change"]) == 2
    assert "exact: comm_dp_sent_bytes: 1,000 -> 900 (-10%)" in capsys.readouterr().out
    assert main([nothing, nothing.replace("nothing", "same"), "--fail-on-change"]) == 2
    append(tmp_path / "none.csv", run(9))
    assert main([nothing, str(tmp_path / "none.csv"), "--fail-on-change"]) == 4


@pytest.mark.parametrize(
    ("metric", "words", "verdict"),
    [("tokens_per_s", {"better": "faster", "worse": "slower"}, "worse"), ("mfu", {}, "worse"),
     ("exposed_comm_share", {}, "better"), ("comm_dp_sent_bytes", {}, "better"), ("gpu_clock_mean_mhz", {}, "lower"),
     ("hfu", {}, "worse"), ("goodput_share", {}, "worse"), ("steps_lost", {}, "better"),
     ("dropped_share", {}, "better"), ("loss_last", {}, "better"), ("expert_imbalance", {}, "better"),
     ("energy_per_token_j", {}, "better"), ("steps_to_loss", {}, "better"), ("samples_per_s_per_device",
     {"better": "faster", "worse": "slower"}, "worse"), ("model_tflops_per_device", {}, "worse")],
)  # fmt: skip
def test_any_column_of_numbers_is_a_metric_with_what_is_better_in_it(metric, words, verdict):
    assert (METRICS[metric].words, METRICS[metric].verdict(0.9)) == (words, verdict)


def test_shares_of_zero_have_no_ratio_and_that_is_said():
    base, other = [run(i, exposed_comm_share=0.0) for i in range(4)], [run(9, exposed_comm_share=0.2)]
    (found,) = compare_files(base, other, METRICS["exposed_comm_share"]).comparisons
    assert found.verdict == "no data"
    assert found.notes == ("A ddp: 4 of 4 runs have 0 or less in exposed_comm_share, which has no ratio",)


def test_numbers_that_are_not_finite_are_left_out_and_that_is_said():
    base = [run(i, step_time_p50_s=time) for i, time in enumerate([float("nan"), float("inf"), 0.1, 0.1, 0.1, 0.1])]
    other = [run(10 + i, step_time_p50_s=0.2) for i in range(4)]
    (found,) = compare_files(base, other, METRICS["step_time_p50_s"]).comparisons
    assert (found.verdict, found.base_runs) == ("worse", 4)
    assert "A ddp: 2 of 6 runs have no finite number in step_time_p50_s, which has no ratio" in found.notes


def test_a_column_is_known_from_the_schema_on_that_added_it() -> None:
    row = replace(run(0), schema=9)
    assert knows(row, "slowest_rank") and knows(row, "memory_buffers_bytes") and not knows(row, "parity_scope")
