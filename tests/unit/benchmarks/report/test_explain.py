"""The parts of a difference: where the time between two variants went, and how sure that is."""

import json
import re
from dataclasses import replace

import pytest

from paralab.benchmarks.report.compare import main
from paralab.benchmarks.report.sections import pieces
from paralab.benchmarks.report.sources import load
from paralab.records.writing import append
from tests.unit.benchmarks.report.test_compare import SLOWER, A
from tests.unit.synthetic_runs import runs


def parted(times, data=0.01, **axes):
    """Return runs of these step times, of which so many seconds went to data and each axis, and the rest to compute."""
    found = []
    for record in runs(times):
        step_s = 3 * record.step_time_p50_s  # the untimed steps are slower: only their shares count
        parts = {f"comm_{axis}": 3 * s for axis, s in axes.items()}
        parts = {"compute": step_s - 3 * data - sum(parts.values()), "data": 3 * data, **parts}
        found.append(replace(record, step_parts_json=json.dumps(parts)))
    return found


def test_the_parts_of_a_difference_add_up_to_it(tmp_path, capsys):
    for name, records in (("a", parted(A, dp=0.02, world=0.001)), ("b", parted(SLOWER, data=0.03, tp=0.005))):
        for record in records:
            append(tmp_path / f"{name}.csv", replace(record, run_id=f"{name}{record.repeat}"))
    words = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--explain"]
    assert main(words) == 0
    said = capsys.readouterr().out.split("where the difference comes from, a ddp -> b ddp\n")[1].splitlines()
    assert said[0].split()[-2:] == ["100", "ms"] and said[-1].split()[-2:] == ["110", "ms"]
    more_ms = {line.rsplit(maxsplit=2)[0].strip(): float(line.split()[-2]) for line in said[1:-1]}
    close = {"waiting for data": 20, "communication over dp": -20, "communication over tp": 5,
             "communication over world": -1, "computing": 6}  # fmt: skip
    assert more_ms == pytest.approx(close, abs=0.5)  # shares are means over runs that take 98 to 112 ms
    assert main([*words, "--format", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["explanations"]
    assert sum(part["other_s"] - part["base_s"] for part in told["parts"]) == pytest.approx(0.01)
    assert main([*words, "--format", "csv"]) == 3
    assert "--explain with --format csv: use one of text, markdown, json" in capsys.readouterr().err
    (piece,) = pieces(load([tmp_path / "a.csv", tmp_path / "b.csv"]))
    drawn = [chart for chart in piece.charts if chart.title.startswith("From ")]
    assert len(drawn) == 1 and "waiting for data: +20" in drawn[0].drawing
    assert all(line.split("  ")[-1].strip() in drawn[0].drawing for line in said), "in the same units and digits"


def test_the_parts_of_a_difference_have_intervals_where_there_are_six_runs(tmp_path, capsys):
    for name, records in (("a", parted([*A, 0.1], dp=0.02)), ("b", parted([*SLOWER, 0.11], data=0.03, dp=0.02))):
        for record in records:
            append(tmp_path / f"{name}.csv", replace(record, run_id=f"{name}{record.repeat}"))
    words = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--explain", "--format", "json"]
    assert main(words) == 0
    (told,) = json.loads(capsys.readouterr().out)["explanations"]
    intervals = {part["name"]: (part["interval_s"], part["other_s"] - part["base_s"]) for part in told["parts"]}
    assert len(intervals) == 3 and all(low <= more <= high for (low, high), more in intervals.values())
    (low, high), more = intervals["waiting for data"]
    assert 0.018 < low < more < high < 0.022
    (low, high), _ = intervals["communication over dp"]
    assert -0.002 < low < 0 < high < 0.002
    assert main(words[:3]) == 0
    said = capsys.readouterr().out
    assert "b ddp, with 95% intervals\n" in said
    assert re.search(r"waiting for data +\+(20|20\.\d) ms +\[1[89]\.\d to 2[01]\.?\d* ms\]\n", said)
    (piece,) = pieces(load([tmp_path / "a.csv", tmp_path / "b.csv"]))
    (drawn,) = [chart for chart in piece.charts if chart.title.startswith("From ")]
    assert drawn.drawing.count('class="median"') == 3


def test_rows_that_do_not_say_where_their_time_went_explain_nothing(tmp_path, capsys):
    for name, records in (("a", runs(A)), ("b", parted(SLOWER))):
        for record in records:
            append(tmp_path / f"{name}.csv", replace(record, run_id=f"{name}{record.repeat}"))
    assert main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), "--explain"]) == 0
    assert "a ddp -> b ddp: no good run of a ddp says where its time went: run it again" in capsys.readouterr().out
