import contextlib
import csv
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paralab.errors import DataError, UsageError, WriteError
from paralab.measure.span import SpanRecord
from paralab.records import schema
from paralab.records.changes import COUNTED_FROM, SCHEMA, Change
from paralab.records.kinds import field_types, value_kind
from paralab.records.log import LogRecord, MemoryRecord, StepLog, StepRecord, read_log
from paralab.records.log_files import log_path, log_paths, safe_name
from paralab.records.possible import BELOW_ZERO, DIVERGES
from paralab.records.reading import read
from paralab.records.row import REQUIRED, RunRecord, header
from paralab.records.schema import columns_of
from paralab.records.writing import append, check_appendable

PLAIN = RunRecord(run_id="a", started_at="2025-01-01T00:00:00+00:00", status="ok", strategy_requested="ddp", model="m")
PUBLISHED = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("*.csv"))
# Of each schema, the sha256 of its sorted columns, joined by commas. Never change a line, only add one.
PINS = {
    6: "afc746d966b38090f71a567467a1b65d443b69432fd8945b79cc09a3ee820019",
    7: "4492b31a021b05046e622bd2413b0f9d862ec900792dad058b1b126940f58367",
    8: "a0ae864bd7c270c390f2b1c7eb4b8c15135324d729099ab2d04c14e345df8ace",
    9: "57d64dd721e364565d1983222f661ec7963bf8ee01fead9bb23948e5ddb22065",
    10: "cea0a59caba14c7752cf4c14bfd24ed06305921aac68dcbf91f9f7a576283380",
    11: "95107ce9b8270f67681e1b0b68cc3749c7aab40a6616f2176b3f4cb0bb52048a",
    12: "b913309eaf1393c50a87652fff0345eeec3ee7112e2cd6e74ac54c260325c536",
    13: "220fd7452dd4d89b5653304de55305822a2b99cd5ab5aad0b13344cdccca6aaf",
    14: "264e48606f28966fc5084d6034373288cd18e1422826f02fe6fb9b1d5f823a4e",
    15: "71a242bb5665c56d50e94f4c52594ed74740b70362f41a2b10ab2afdb4a80a1f",
    16: "353e15f2f52bd612f63677d5357ebb693e66caaf891c1341508e025a6e7bd65a",
    17: "e073f8347c6c2527e420759439a6709b55af9f072045fca19c98f3ee10403f31",
    18: "e073f8347c6c2527e420759439a6709b55af9f072045fca19c98f3ee10403f31",
    19: "f60e9820808b43c3bb1fb04293dfbc9ede5c4a5d52ff0c9af6d07f52b8176bb6",
    20: "79d578f4fd866485112e2258a05c1fd613760bde6cb9c64165d7d36b7c5f82fe",
    21: "2e7532abbe314d4dcb4ac2eaddfbaa7ae1b7f4ad85e93b626885e2bf16e66edf",
    22: "4a8d7b2db8d7984391c466297937efd018dbe93397ee840be2ab13dc409ac6c0",
    23: "e3e67d525bd631e0667dcb0f843b5778d4c06031206f5589ebe46ec2b20540dd",
    24: "085e9a2202c5185e3a9f0aa2d58319aa344f94246d97bd9476d5971381f7c2b4",
    25: "28abd1e99a5f40a66b0b7793e3c8e18d935c0485c9adce3ef71a6fbb4a4faeb0",
    26: "226654f3e5354335c02b862d37203f06d2eb3b53ec11f2562124b3afe1e82226",
    27: "c1b189f4f2dca79583aa0ccf1b3d2a20346f3f6c3e04e3f5822baa1783f65b63",
    28: "4c1c8d166a6c11bfb56e09b3e2a52965ca4e9df8d0b68f57276997fc17b4e29b",
    29: "9d2b85f728123b4f934e4ee0cb12c874558376e036fcc6341ddde424d6302354",
}
DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "'", "", '"', "a,b", "\\", "\\u0041"]


def values_of(name: str) -> st.SearchStrategy:
    kind, choices = value_kind(field_types(RunRecord)[name])
    if name == "schema":
        return st.just(SCHEMA)
    if name == "started_at":
        return st.datetimes(timezones=st.just(UTC)).map(lambda time: time.isoformat())
    required = name in REQUIRED
    least = None if name in BELOW_ZERO else 0
    numbers = {int: st.integers(least), float: st.floats(least, allow_nan=False, allow_infinity=name in DIVERGES)}
    text = st.text(st.characters(), max_size=20) | st.sampled_from(DANGEROUS)  # control characters and surrogates too
    value = st.sampled_from(choices) if choices else {str: text, bool: st.booleans(), **numbers}[kind]
    return value if required else st.none() | value


@given(st.fixed_dictionaries({f.name: values_of(f.name) for f in fields(RunRecord)}))
@settings(max_examples=60, deadline=None)
def test_any_record_comes_back_as_it_was(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "r.csv"
    written = RunRecord(**values)
    append(path, written)
    append(path, PLAIN)
    assert read(path) == [written, PLAIN]
    assert path.read_bytes().count(b"\n") == 3, "one run is one line"


@contextlib.contextmanager
def room_for(size_bytes: int) -> Iterator[None]:
    """Let files grow to so many bytes: a write beyond fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_row_that_the_disk_has_no_room_for_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    path = tmp_path / "r.csv"
    append(path, PLAIN)
    while path.stat().st_size < 3 * len(",".join(header())):
        append(path, PLAIN)
    before = path.read_bytes()
    with (
        room_for(len(before) + 5),
        pytest.raises(WriteError, match=r"r\.csv cannot be written .*kept in .*paralab-b\.csv"),
    ):
        append(path, replace(PLAIN, run_id="b"))
    with room_for(len(before) + 5), pytest.raises(WriteError):  # of that it could not be written
        append(path, replace(PLAIN, run_id="b", status="crash"))
    assert path.read_bytes() == before, "no part of the row is left"
    (kept,) = read(tmp_path / "other" / "paralab-b.csv")
    assert (kept.run_id, kept.status) == ("b", "ok")
    with room_for(5), pytest.raises(WriteError, match=r"new\.csv cannot be written \([^)]*\): make room there$"):
        append(tmp_path / "new.csv", PLAIN)


def test_a_log_that_the_disk_has_no_room_for_is_named(tmp_path):
    log = StepLog(tmp_path / "rank0.jsonl")
    with room_for(5), pytest.raises(WriteError, match=r"rank0\.jsonl cannot be written"):
        log.write(StepRecord(step=1))
    log.close()


def test_numbers_that_are_not_finite_come_back(tmp_path):
    append(tmp_path / "r.csv", replace(PLAIN, loss_last=math.nan, loss_first=-math.inf))
    (row,) = read(tmp_path / "r.csv")
    assert math.isnan(row.loss_last) and row.loss_first == -math.inf


def test_a_difference_of_two_clocks_a_little_below_zero_comes_back(tmp_path):
    append(tmp_path / "r.csv", replace(PLAIN, bubble_share=-1e-16, slowest_behind_s=-0.001))
    (row,) = read(tmp_path / "r.csv")
    assert (row.bubble_share, row.slowest_behind_s) == (-1e-16, -0.001)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens_per_s", math.inf), ("step_time_p50_s", math.nan), ("process_peak_bytes", -1), ("mfu", -0.5),
     ("grad_norm_last", -1.0), ("until_loss", math.nan), ("comm_dp_sent_bytes", -math.inf)],
)  # fmt: skip
def test_a_number_that_a_column_cannot_hold_is_named_with_its_line(tmp_path, name, value):
    path = tmp_path / "r.csv"
    append(path, PLAIN)
    append(path, replace(PLAIN, **{name: value}))
    needed = "a number from 0 is needed" if math.isfinite(value) else "a finite number is needed"
    with pytest.raises(DataError, match=rf"r\.csv line 3: {name} is '{value}' \({needed}; an empty cell is unknown\)"):
        read(path)


@pytest.mark.parametrize("text", DANGEROUS)
def test_no_text_cell_starts_a_formula(tmp_path, text):
    append(tmp_path / "r.csv", replace(PLAIN, run_id=text, reason=text, loss_last=-1.5))
    with open(tmp_path / "r.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    for name in ("run_id", "reason"):
        assert row[name][0] not in "=+-@\t\r\n＝", f"{name}={row[name]!r}"
    assert row["loss_last"] == "-1.5", "numbers stay numbers"


def test_unknown_is_an_empty_cell(tmp_path):
    append(tmp_path / "r.csv", PLAIN)
    with open(tmp_path / "r.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == header()
    known = {"schema", "run_id", "started_at", "status", "strategy_requested", "model"}
    assert {name for name, cell in row.items() if cell} == known


def test_a_value_of_the_wrong_type_is_not_written(tmp_path):
    with pytest.raises((TypeError, ValueError)):
        append(tmp_path / "r.csv", replace(PLAIN, steps_lost=1.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="status='fine'"):
        append(tmp_path / "r.csv", replace(PLAIN, status="fine"))  # type: ignore[arg-type]


def test_a_torn_end_is_skipped_and_then_repaired_at_any_byte(tmp_path):
    path = tmp_path / "r.csv"
    rows = [replace(PLAIN, run_id="one"), replace(PLAIN, run_id="two", reason='é,"\n')]
    for row in rows:
        append(path, row)
    content = path.read_bytes()
    header_end = content.index(b"\n") + 1
    second = content.index(b"\n", header_end) + 1
    alike = {end for end in range(len(content)) if content[end - 1 : end + 1] == b",,"}  # between two empty cells
    ends = set(range(second - 1, len(content))) - alike
    for end in sorted(ends | {header_end - 1, header_end, header_end + 1} | set(range(0, len(content), 97))):
        path.write_bytes(content[:end])
        kept = rows[: 0 if end < second else 1]
        if end in (0, header_end, second):
            assert read(path) == kept
        else:
            with pytest.warns(UserWarning, match="not finished"):
                assert read(path) == kept
        append(path, PLAIN)
        assert read(path) == [*kept, PLAIN] and path.read_bytes().endswith(b"\n")


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path, writers, each = tmp_path / "r.csv", 4, 25
    code = (
        "import sys; from dataclasses import replace; from paralab.records import row, writing\n"
        "row = row.RunRecord(run_id='', started_at='2025-01-01', status='ok', strategy_requested='ddp', model='m')\n"
        f"[writing.append(sys.argv[1], replace(row, run_id=sys.argv[2], repeat=i)) for i in range({each})]\n"
    )
    root = Path(__file__).parents[3]
    jobs = [subprocess.Popen([sys.executable, "-c", code, path, str(w)], cwd=root) for w in range(writers)]
    assert [job.wait(timeout=60) for job in jobs] == [0] * writers
    found = [(row.run_id, row.repeat) for row in read(path)]
    assert sorted(found) == sorted((str(w), i) for w in range(writers) for i in range(each))


@pytest.mark.filterwarnings("ignore:.*the last line is not finished")
@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"hello", b"schema,run_id\n", b"\x00\xff\n"])
def test_a_file_with_another_header_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--out NEW\.csv"):
        append(path, PLAIN)
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match=r"other columns than a result file|no CSV file"):
        read(path)
    with pytest.raises(UsageError, match=r"--out NEW\.csv"):
        check_appendable(path)


def test_a_bad_cell_is_named(tmp_path):
    path = tmp_path / "r.csv"
    append(path, replace(PLAIN, dp=7))
    path.write_text(path.read_text().replace(",7,", ",seven,"))
    with pytest.raises(DataError, match="line 2: dp is 'seven'"):
        read(path)
    with pytest.raises(DataError, match=r"cannot be read .*: give a CSV file"):
        read(tmp_path / "none.csv")
    (tmp_path / "run").mkdir()
    append(tmp_path / "run" / "runs.csv", PLAIN)
    with pytest.raises(DataError, match=r"run cannot be read .*: give its rows, .*run/runs\.csv"):
        read(tmp_path / "run")


def test_a_change_of_the_columns_counts_the_schema_up():
    for number in range(COUNTED_FROM, SCHEMA + 1):
        found = sha256(",".join(sorted(columns_of(number))).encode()).hexdigest()
        assert PINS.get(number) == found, (
            f"the columns of schema {number} are not those that were pinned. Where you changed the columns: add "
            f"{SCHEMA + 1}: Change(added=..., removed=..., renamed=...) to CHANGES in changes.py, and the line that "
            f"this test then prints to PINS. Pin of schema {number} now: {found!r}"
        )


@pytest.fixture
def later(monkeypatch):
    """Make a schema 8 that renamed a column, added one and removed one since schema 6."""
    changes = {
        COUNTED_FROM + 1: Change(removed=("mood",), renamed={"step_time_s": "step_time_p50_s"}),
        COUNTED_FROM + 2: Change(added=("straggler_ratio",)),
    }
    monkeypatch.setattr(schema, "CHANGES", changes)
    monkeypatch.setattr(schema, "RENAMED", {"step_time_s": "step_time_p50_s"})
    monkeypatch.setattr(schema, "SCHEMA", COUNTED_FROM + 2)


def rows_of(number, **cells):
    """Return a CSV file of one row that says a schema, with the columns of the number `columns`."""
    columns = sorted(columns_of(cells.pop("columns", number)))
    cells |= dict(zip(REQUIRED, (number, "a", PLAIN.started_at, "ok", "ddp", "m"), strict=True))
    return f"{','.join(columns)}\n{','.join(str(cells.get(name, '')) for name in columns)}\n"


def test_older_schemas_are_read_under_the_names_of_today(tmp_path, later):
    path = tmp_path / "r.csv"
    path.write_text(rows_of(6, step_time_s=0.25, mood="calm"))
    with pytest.warns(UserWarning, match="skipped: mood") as caught:
        (row,) = read(path)
    assert (row.step_time_p50_s, row.straggler_ratio) == (0.25, None) and len(caught) == 1
    path.write_text(rows_of(7, step_time_p50_s=0.5))
    assert read(path)[0].step_time_p50_s == 0.5
    with pytest.raises(UsageError, match=r"lacks straggler_ratio.*--out NEW\.csv"):
        append(path, PLAIN)
    path.write_text(rows_of(8, straggler_ratio=2.0))
    assert read(path)[0].straggler_ratio == 2.0


@pytest.mark.parametrize(
    ("number", "columns"), [(7, 8), (6, 8), (1, 8), (8, 7), (8, 6), (7, 6), (2, 8), (2, 6), (0, 6)]
)
def test_a_row_that_says_another_schema_than_its_columns_is_refused_with_its_line(tmp_path, later, number, columns):
    (tmp_path / "r.csv").write_text(rows_of(number, columns=columns))
    with pytest.raises(DataError, match=f"line 2 says schema {number}, which does not fit the columns"):
        read(tmp_path / "r.csv")


def test_a_newer_schema_is_refused(tmp_path, later):
    (tmp_path / "r.csv").write_text(rows_of(9, columns=8))
    with pytest.raises(UsageError, match="newer paralab: schema 9, this one reads up to 8: upgrade"):
        read(tmp_path / "r.csv")


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])
def test_the_published_results_are_read(path):
    rows = read(path)
    assert rows and all(row.status == "ok" and row.step_time_p50_s for row in rows)


NEW_YEAR = "2025-01-01T00:00:00.000"
SAVED = {
    "a byte order mark and CRLF": lambda t: ("\ufeff" + t.replace("\n", "\r\n")).encode(),
    "UTF-16": lambda t: t.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
    "UTF-32": lambda t: t.encode("utf-32"),
    "bars": lambda t: t.replace(",", "|").encode(),
    "a first line that names commas": lambda t: ("sep=,\n" + t).encode(),
    "a first line that names semicolons": lambda t: ("sep=;\r\n" + t.replace(",", ";").replace("\n", "\r\n")).encode(),
    "semicolons": lambda t: t.replace(",", ";").encode(),
    "tabs": lambda t: t.replace(",", "\t").encode(),
    "blank lines": lambda t: (t + "\n\n  \n").encode(),
    "CR": lambda t: t.replace("\n", "\r").encode(),
    "empty columns": lambda t: t.replace("\n", ",,\n").encode(),
    "capitals": lambda t: t.replace("false", "FALSE").encode(),
    "floats": lambda t: t.replace(",7,", ",7.0,").encode(),
    "a time in another zone": lambda t: t.replace(f"{NEW_YEAR}+00:00", "2025-01-01 02:00:00+02:00").encode(),
    "a time without a zone": lambda t: t.replace(f"{NEW_YEAR}+00:00", "2025-01-01 00:00").encode(),
    "spaces around cells": lambda t: t.replace(",7,", ", 7 ,").replace(",ok,", ", ok ,").encode(),
    "CRLF without a last line break": lambda t: t.replace("\n", "\r\n").rstrip().encode(),
}


@pytest.fixture
def in_tokyo(monkeypatch):
    with monkeypatch.context() as there:
        there.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.filterwarnings("ignore:.*without a filled cell")
@pytest.mark.parametrize("form", SAVED)
def test_what_a_spreadsheet_saved_is_read_and_not_written_to(tmp_path, form):
    path = tmp_path / "r.csv"
    ours = replace(PLAIN, started_at=f"{NEW_YEAR}+00:00")
    rows = [replace(ours, dp=7, parity=False, reason="é"), replace(ours, run_id="b")]
    for row in rows:
        append(path, row)
    path.write_bytes(SAVED[form](path.read_text()))
    content = path.read_bytes()
    assert read(path) == rows
    try:
        append(path, replace(PLAIN, run_id="c"))
    except UsageError as error:
        assert f"mv {path} {path}.before, or write to another file with --out NEW.csv" in str(error)
        assert path.read_bytes() == content
    else:
        assert path.read_bytes().startswith(content) and len(read(path)) == 3


def test_a_file_is_put_aside_under_a_name_that_is_free(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("a,b\n")
    for taken, free in ((None, "before"), ("before", "before2"), ("before2", "before3")):
        if taken:
            (tmp_path / f"r.csv.{taken}").symlink_to("nowhere")
        with pytest.raises(UsageError, match=rf"mv {path} {path}\.{free}, or"):
            check_appendable(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.replace(",0.25,", ",0,25,"), "line 2 has"),
        (lambda t: t.replace(",", ";").replace(";0.25;", ";0,25;"), "line 2: wall_s is '0,25'.*decimal comma"),
        (lambda t: t.replace(",ok,", ",\udce9,"), "line 2 is not UTF-8"),
        (lambda t: t.replace(",ok,", ",fine,"), "line 2: status is 'fine'"),
        (lambda t: t.replace("\na,", "\n,").replace(",a,", ",,"), "line 2: run_id is ''"),
        (lambda t: t.replace("model,", "status,", 1), "lacks model"),
        (lambda t: t.replace("reason,", "size,", 1), "has the column size twice"),
        (lambda t: t + t, "line 3 repeats the names of the columns: remove the line"),
        (lambda t: t + "\ufeff" + t, "line 3 repeats the names of the columns: remove the line"),
        (lambda t: t + t.replace("reason,", ""), "line 3 names other columns, as of another file that was put behind"),
        (lambda t: t.replace(",ok,", ',"ok,') + t.split("\n", 1)[1] * 2, "line 2 is damaged .unexpected end"),
        (lambda t: "\0".join(t), "zero bytes"),
        (lambda t: t.replace(",0.25,", ',"1,234.5",'), "line 2: wall_s is '1,234.5'.*separators of thousands"),
        (lambda t: t.replace(",0.25,", ",1 234,"), "line 2: wall_s is '1 234'.*separators of thousands"),
        (lambda t: t.replace(",0.25,", ",1_0,"), "line 2: wall_s is '1_0'.*a number is needed"),
        (lambda t: t.replace(",0.25,", ",٢,"), "line 2: wall_s is '٢'.*a number is needed"),
        (lambda t: t.replace(f"\n{SCHEMA},", "\n2.7E+01,"), "line 2: schema is '2.7E.01'.*whole number"),
        (lambda t: t.replace("2025-01-01T00:00:00+00:00", "01/01/25 12:00 AM"), "line 2: started_at is .*a time"),
        (lambda t: "\x1f\udc8b" + t, "packed with gzip"),
        (lambda t: "BZh9" + t, "packed with bzip2"),
        (lambda t: "PK\x03\x04" + t, "workbook"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, damage, said):
    path = tmp_path / "r.csv"
    append(path, replace(PLAIN, wall_s=0.25))
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=said):
        read(path)


def test_a_cleared_row_and_a_column_of_ones_own_are_passed_over_and_said(tmp_path):
    path = tmp_path / "r.csv"
    append(path, PLAIN)
    head, row = path.read_text().splitlines()
    path.write_text(f"{head},notes\n{',' * head.count(',')},\n{row},good\n")
    with pytest.warns(UserWarning) as caught:
        assert read(path) == [PLAIN]
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2 and "skipped: notes" in said[0] and "line 2 without a filled cell" in said[1]


def test_a_place_where_no_rows_can_be_added_is_refused_before(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "r.csv", Path("/proc/r.csv"), tmp_path):
        with pytest.raises(UsageError, match=r"cannot be written .*--out"):
            check_appendable(path)
    check_appendable(tmp_path / "new" / "r.csv")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"], "looking leaves nothing behind"


def test_a_log_comes_back_and_strict_json_reads_it(tmp_path):
    path = log_path(tmp_path / "r.csv", "run", 0)
    rows: list[LogRecord] = [
        StepRecord(step=1, loss=2.5, grad_norm=1.0, measured=True),
        StepRecord(step=2, loss=math.inf),
        SpanRecord(step=2, rank=0, stage=1, kind="F", micro_batch=0, start_s=0.0, end_s=1.0),
        MemoryRecord(rank=0, parameters_bytes=12),
    ]
    log = StepLog(path)
    for row in rows:
        log.write(row)
    log.close()
    assert read_log(path) == rows
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_torn_log_is_read_and_continued(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"record": "step", "step": 1}\n{"record": "st')
    with pytest.warns(UserWarning, match="not finished"):
        assert read_log(path) == [StepRecord(step=1)]
    log = StepLog(path)
    log.write(StepRecord(step=2))
    log.close()
    assert read_log(path) == [StepRecord(step=1), StepRecord(step=2)]


@pytest.mark.parametrize(
    "line", ['{"step": 1}', "[]", "7", '{"record": "step", "step": "x"}', '{"record": "step", "step": 1, "no": 1}',
             '{"record": "span", "step": 1, "rank": 0, "stage": 0, "kind": "<b>", "micro_batch": 0, "start_s": 0, '
             '"end_s": 1}']
)  # fmt: skip
def test_a_line_that_is_no_record_is_refused(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1 is not a record"):
        read_log(tmp_path / "x.jsonl")


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_run_name_gives_a_file_inside_the_folder(name):
    path = log_path("/results/x.csv", name, 3)
    assert path.parent == Path("/results/x") and len(path.name) < 200
    assert path.name.isascii() and not path.name.startswith((".", "-"))


def test_names_that_clean_up_alike_stay_apart(tmp_path):
    names = ["a/b", "a_b", "a b", "../a_b", "a_b.rank1", "=a_b"]
    assert len({safe_name(name) for name in names}) == len(names)
    for name in names:
        StepLog(log_path(tmp_path / "r.csv", name, 10)).close()
        StepLog(log_path(tmp_path / "r.csv", name, 9)).close()
    for name in names:
        assert log_paths(tmp_path / "r.csv", name) == [log_path(tmp_path / "r.csv", name, r) for r in (9, 10)]
