"""What `paralab compare` prints, in every format, and the exit statuses that make it a gate."""

import csv
import io
import json
import re

import pytest

from paralab.benchmarks.report import plot, report
from paralab.benchmarks.report.compare import main
from paralab.errors import DataError
from tests.unit.benchmarks.report.test_compare import SLOWER, A
from tests.unit.synthetic_runs import run, runs, write


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "before.csv", runs(A)), write(tmp_path / "after.csv", runs(SLOWER))


@pytest.mark.parametrize(("fail_over", "status"), [([], 0), (["--fail-over", "5"], 2), (["--fail-over", "20"], 0)])
def test_exit_status_of_a_regression(files, capsys, fail_over, status):
    assert main([*files, *fail_over]) == status
    text = capsys.readouterr().out
    assert "slower 10.0%" in text and "100 ms (n=5)" in text and "CPU (gloo)" in text
    assert main(files[::-1]) == 0 and "faster 9.1%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["none.csv", "other.csv"], "cannot be read"), (["--fail-over", "x"], "use a percentage"),
     (["--fail-over", "-3"], "use a percentage"),
     (["--nonsense"], "--help"), (["--metric", "step_time"], "did you mean step_time_p"),
     (["--metric", "layout"], "is not a column of numbers"),
     (["--metric", "gpu_clock_mean_mhz", "--fail-over", "5"], "neither lower nor higher is better"),
     (["--by", "stratgy"], "did you mean strategy"), (["--by", "strategy", "--baseline", "dpd"], "did you mean ddp")],
)  # fmt: skip
def test_bad_requests_end_with_one_line_and_status_3(files, capsys, arguments, said):
    given = arguments if arguments[0].endswith(".csv") else [*files, *arguments]
    assert main(given) == 3
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_files_that_do_not_differ_in_the_column_are_listed(files, capsys):
    assert main([*files, "--by", "strategy"]) == 3
    said = capsys.readouterr().out
    assert "without a partner: before: ddp" in said and "without a partner: after: ddp" in said


@pytest.mark.parametrize("form", ["text", "json", "csv", "markdown"])
def test_a_number_that_nothing_measured_is_not_compared(tmp_path, capsys, form):
    a, b = write(tmp_path / "a.csv", runs(A)), write(tmp_path / "b.csv", runs([1e308] * 5))
    assert main([a, b, "--format", form, "--fail-over", "5"]) == 4
    said = capsys.readouterr()
    assert "no data" in said.out and not re.search(r"\b(nan|inf)\b", said.out, re.IGNORECASE) and not said.err


def test_three_files_need_a_column(files, tmp_path, capsys):
    assert main([*files, write(tmp_path / "third.csv", runs(A, first=90))]) == 3
    assert "3 files given: give one or two" in capsys.readouterr().err


def test_of_many_verdicts_it_is_said_how_many_are_chance(tmp_path, capsys):
    rows = [r for i in range(12) for r in runs([t * (1 + i / 2) for t in A * 2], strategy=f"s{i}")]
    assert main([write(tmp_path / "a.csv", rows), "--by", "strategy"]) == 0
    assert "11 verdicts at the 5% level: up to 0.6 would be chance alone" in capsys.readouterr().out


def test_one_file_is_compared_way_by_way(tmp_path, capsys):
    slow = [one * 1.2 for one in A]
    both = [*runs(A), *runs(slow, strategy="zero3", layout="dp2/zero3"), *runs(A, strategy="single", model="resnet")]
    assert main([write(tmp_path / "a.csv", both), "--fail-over", "5"]) == 2
    said = capsys.readouterr().out
    assert re.search(r"ddp +baseline +100 ms .*\n +zero3 +slower 20\.0% ", said)
    assert "without a partner: single (resnet" in said


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_lines_fit_the_terminal_and_a_note_on_several_is_said_once(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["ddp", "zero3", "tensor_with_a_long_name"]
    rows = [r for i, name in enumerate(names) for r in runs([t * (1 + i) for t in A[:4]], strategy=name, steady=False)]
    assert main([write(tmp_path / "a.csv", rows), "--by", "strategy", "--equivalent-within", "2%"]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    once = " ".join(said.split())
    assert f"each of ddp, zero3 and {names[2]}: 4 of 4 runs never reached a steady step time" in once
    assert once.count("never reached") == once.count("a verdict on 2 variants") == 1


def test_one_file_of_one_way_needs_another(files, capsys):
    assert main([files[0]]) == 3
    said = capsys.readouterr().err
    assert "does not hold two strategies" in said and "--by COLUMN" in said


def test_json_and_csv_hold_the_same_numbers(files, capsys):
    main([*files, "--format", "json"])
    (found,) = json.loads(capsys.readouterr().out)["comparisons"]
    main([*files, "--format", "csv"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(row["ratio"]) == found["ratio"] == pytest.approx(1.1)
    assert row["verdict"] == found["verdict"] == "worse" and row["forced"] == "false"


def test_forced_lines_are_marked_in_every_format(tmp_path, capsys):
    a, b = write(tmp_path / "a.csv", runs(A)), write(tmp_path / "b.csv", runs(A, precision="bf16"))
    for form, mark in (("text", "FORCED"), ("markdown", "FORCED"), ("csv", "true"), ("json", '"forced": true')):
        assert main([a, b, "--force", "--format", form]) == 0
        assert mark in capsys.readouterr().out
        assert main([a, b, "--format", form]) == 3
        assert "--precision" in capsys.readouterr().out


def test_hostile_text_is_harmless_in_every_format(tmp_path, capsys):
    evil = "=cmd()|<script>\x1b[2J\n| a"
    a = write(tmp_path / "a.csv", runs(A, strategy=evil))
    b = write(tmp_path / "b.csv", runs(SLOWER, strategy=evil))
    for form in ("text", "markdown", "csv", "json"):
        assert main([a, b, "--format", form]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out and "\n| a" not in out
        if form == "markdown":
            assert "<script>" not in out.replace("\\<", "")
        if form == "csv":
            (row,) = csv.DictReader(io.StringIO(out))
            assert not any(cell.startswith("=") for cell in row.values())


def test_markdown_is_a_table(files, capsys):
    main([*files, "--format", "markdown"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 3 and len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize("command", [main, report.main, plot.main])
def test_a_line_that_was_cut_off_is_said_also_where_another_is_refused(tmp_path, capsys, command):
    path = write(tmp_path / "r.csv", [run(tokens_per_s=-1.0)])
    with open(path, "a") as file:
        file.write("half of a l")
    out = [] if command is main else ["--out", str(tmp_path / ("r.html" if command is report.main else "r.svg"))]
    error = ""
    try:
        assert command([path, *out]) != 0
    except DataError as refused:  # `paralab` makes a line of it
        error = str(refused)
    said = capsys.readouterr().err + error
    assert re.search(r"r\.csv: the last line is not finished and was skipped\n.*line 2: tokens_per_s is '-1\.0'", said)
    assert not (tmp_path / "r.html").exists() and not (tmp_path / "r.svg").exists()
