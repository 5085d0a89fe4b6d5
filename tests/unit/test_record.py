import csv
import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import DataError, UsageError
from parallel.measure import record as rec
from parallel.measure.record import MemoryRecord, RunRecord, SpanRecord, StepLog, StepRecord

PLAIN = RunRecord(run_id="a", started_at="2025-01-01T00:00:00+00:00", status="ok", strategy_requested="ddp", model="m")
DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "'", "", '"', "a,b", "\\", "\\u0041"]


def values_of(name: str) -> st.SearchStrategy:
    kind, choices = rec._kind(rec._types(RunRecord)[name])
    required = name in {"schema", "run_id", "started_at", "status", "strategy_requested", "model"}
    text = st.text(st.characters(), max_size=20) | st.sampled_from(DANGEROUS)  # control characters and surrogates too
    value = (
        st.sampled_from(choices)
        if choices
        else {str: text, bool: st.booleans(), int: st.integers(), float: st.floats(allow_nan=False)}[kind]
    )
    return value if required else st.none() | value


@given(st.fixed_dictionaries({f.name: values_of(f.name) for f in fields(RunRecord)}))
@settings(max_examples=60, deadline=None)
def test_any_record_comes_back_as_it_was(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "r.csv"
    written = RunRecord(**values)
    rec.append(path, written)
    rec.append(path, PLAIN)
    assert rec.read(path) == [written, PLAIN]
    assert path.read_bytes().count(b"\n") == 3, "one run is one line"


def test_numbers_that_are_not_finite_come_back(tmp_path):
    rec.append(tmp_path / "r.csv", replace(PLAIN, loss_last=math.nan, loss_first=-math.inf))
    (row,) = rec.read(tmp_path / "r.csv")
    assert math.isnan(row.loss_last) and row.loss_first == -math.inf


@pytest.mark.parametrize("text", DANGEROUS)
def test_no_text_cell_starts_a_formula(tmp_path, text):
    rec.append(tmp_path / "r.csv", replace(PLAIN, run_id=text, reason=text, loss_last=-1.5))
    with open(tmp_path / "r.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    for name in ("run_id", "reason"):
        assert row[name][0] not in "=+-@\t\r\n＝", f"{name}={row[name]!r}"
    assert row["loss_last"] == "-1.5", "numbers stay numbers"


def test_unknown_is_an_empty_cell(tmp_path):
    rec.append(tmp_path / "r.csv", PLAIN)
    with open(tmp_path / "r.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == rec.header()
    known = {"schema", "run_id", "started_at", "status", "strategy_requested", "model"}
    assert {name for name, cell in row.items() if cell} == known


def test_a_value_of_the_wrong_type_is_not_written(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        rec.append(tmp_path / "r.csv", replace(PLAIN, steps_lost=1.5))
    with pytest.raises(ValueError, match="status='fine'"):
        rec.append(tmp_path / "r.csv", replace(PLAIN, status="fine"))


def test_a_torn_end_is_skipped_and_then_repaired_at_any_byte(tmp_path):
    path = tmp_path / "r.csv"
    rows = [replace(PLAIN, run_id="one", reason='x,"\n'), replace(PLAIN, run_id="two", reason="é" * 5)]
    for row in rows:
        rec.append(path, row)
    content = path.read_bytes()
    header_end = content.index(b"\n") + 1
    second = content.index(b"\n", header_end) + 1
    for end in [*range(0, header_end, 97), *range(header_end, len(content))]:
        path.write_bytes(content[:end])
        kept = rows[: 0 if end < second else 1]
        if end in (0, header_end, second):
            assert rec.read(path) == kept
        else:
            with pytest.warns(UserWarning, match="not finished"):
                assert rec.read(path) == kept
        rec.append(path, PLAIN)
        assert rec.read(path) == [*kept, PLAIN] and path.read_bytes().endswith(b"\n")


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path, writers, each = tmp_path / "r.csv", 4, 25
    code = (
        "import sys; from dataclasses import replace; from parallel.measure import record as r\n"
        "row = r.RunRecord(run_id='', started_at='t', status='ok', strategy_requested='ddp', model='m')\n"
        f"[r.append(sys.argv[1], replace(row, run_id=sys.argv[2], repeat=i)) for i in range({each})]\n"
    )
    root = Path(__file__).parents[2]
    jobs = [subprocess.Popen([sys.executable, "-c", code, path, str(w)], cwd=root) for w in range(writers)]
    assert [job.wait(timeout=60) for job in jobs] == [0] * writers
    found = [(row.run_id, row.repeat) for row in rec.read(path)]
    assert sorted(found) == sorted((str(w), i) for w in range(writers) for i in range(each))


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"hello", b"schema,run_id\n", b"\x00\xff\n"])
def test_a_file_with_another_header_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--out NEW\.csv"):
        rec.append(path, PLAIN)
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match="other columns than schema"):
        rec.read(path)


def test_a_bad_cell_is_named(tmp_path):
    path = tmp_path / "r.csv"
    rec.append(path, replace(PLAIN, dp=7))
    path.write_text(path.read_text().replace(",7,", ",seven,"))
    with pytest.raises(DataError, match="line 2: dp is 'seven'"):
        rec.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        rec.read(tmp_path / "none.csv")


def test_a_log_comes_back_and_strict_json_reads_it(tmp_path):
    path = rec.log_path(tmp_path / "r.csv", "run", 0)
    rows = [
        StepRecord(step=1, loss=2.5, grad_norm=1.0, measured=True),
        StepRecord(step=2, loss=math.inf),
        SpanRecord(step=2, rank=0, stage=1, kind="F", micro_batch=0, start_s=0.0, end_s=1.0),
        MemoryRecord(rank=0, parameters_bytes=12),
    ]
    log = StepLog(path)
    for row in rows:
        log.write(row)
    log.close()
    assert rec.read_log(path) == rows
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_torn_log_is_read_and_continued(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"record": "step", "step": 1}\n{"record": "st')
    with pytest.warns(UserWarning, match="not finished"):
        assert rec.read_log(path) == [StepRecord(step=1)]
    log = StepLog(path)
    log.write(StepRecord(step=2))
    log.close()
    assert [row.step for row in rec.read_log(path)] == [1, 2]


@pytest.mark.parametrize(
    "line", ['{"step": 1}', "[]", "7", '{"record": "step", "step": "x"}', '{"record": "step", "step": 1, "no": 1}',
             '{"record": "span", "step": 1, "rank": 0, "stage": 0, "kind": "<b>", "micro_batch": 0, "start_s": 0, '
             '"end_s": 1}']
)  # fmt: skip
def test_a_line_that_is_no_record_is_refused(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1 is not a record"):
        rec.read_log(tmp_path / "x.jsonl")


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_run_name_gives_a_file_inside_the_folder(name):
    path = rec.log_path("/results/x.csv", name, 3)
    assert path.parent == Path("/results/x") and len(path.name) < 200
    assert path.name.isascii() and not path.name.startswith((".", "-"))


def test_names_that_clean_up_alike_stay_apart(tmp_path):
    names = ["a/b", "a_b", "a b", "../a_b", "a_b.rank1", "=a_b"]
    assert len({rec.safe_name(name) for name in names}) == len(names)
    for name in names:
        StepLog(rec.log_path(tmp_path / "r.csv", name, 10)).close()
        StepLog(rec.log_path(tmp_path / "r.csv", name, 9)).close()
    for name in names:
        assert rec.log_paths(tmp_path / "r.csv", name) == [rec.log_path(tmp_path / "r.csv", name, r) for r in (9, 10)]
