"""`paralab predict`: the contract of cases, rows that cannot be predicted, devices of one's own."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from paralab import cli
from paralab.benchmarks.planner.cases import FOLDER

CASE = {
    "case_id": "a",
    "layers": "32",
    "hidden": "4096",
    "heads": "32",
    "vocab": "50304",
    "sequence_length": "2048",
    "gpu": "A100-SXM4-80GB",
    "n_gpus": "8",
    "dp": "8",
    "zero": "3",
    "micro_batch_size": "4",
    "global_batch_size": "64",
}


def predicted(folder: Path, *rows: dict[str, str], words: tuple[str, ...] = ()) -> tuple[int, list[dict[str, str]]]:
    """Return the exit status and the predictions of cases that are CASE with other cells."""
    source, out = folder / "cases.csv", folder / "out.csv"
    names = list(dict.fromkeys(name for row in rows for name in {**CASE, **row}))
    with open(source, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({**CASE, **row} for row in rows)
    status = cli.main(["predict", str(source), "--out", str(out), *words])
    return status, list(csv.DictReader(out.open())) if out.exists() else []


def test_a_row_for_each_case_with_the_columns_of_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    status, rows = predicted(tmp_path, {}, {"case_id": "b", "tp": "2", "dp": "4"})
    assert status == 0 and [row["case_id"] for row in rows] == ["a", "b"]
    for row in rows:
        assert float(row["step_time_s"]) > 0 and 0 < float(row["mfu"]) < 1 and float(row["memory_gib"]) > 1
        assert row["fits"] in ("true", "false") and row["error"] == ""
    assert "tp=1" in rows[0]["assumed"] and "tp=" not in rows[1]["assumed"]
    assert "predicted 2 of 2 cases" in (said := capsys.readouterr().err) and "step time was off by" in said


def test_a_case_id_that_is_there_twice_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One that a line number stands for among them; all rows are predicted."""
    status, rows = predicted(tmp_path, {}, {"case_id": "4"}, {"case_id": ""}, {"case_id": "b"}, {})
    assert status == 0 and all(float(row["step_time_s"]) > 0 for row in rows)
    said = [line.partition("cases.csv, ")[2] for line in capsys.readouterr().err.splitlines() if "is that of" in line]
    assert said == [
        "line 4: case_id '4' is that of line 3 as well: give each row its own",
        "line 6: case_id 'a' is that of line 2 as well: give each row its own",
    ]


def test_a_file_that_a_spreadsheet_saved_is_that_file(tmp_path: Path) -> None:
    status, want = predicted(tmp_path, {}, {"case_id": "b", "tp": "2", "dp": "4"})
    source, out = tmp_path / "cases.csv", tmp_path / "out.csv"
    text = source.read_text()
    for saved in (
        text.replace("\n", ",,\n").encode("utf-8-sig"),
        ("sep=;\r\n" + text.replace(",", ";")).encode(),
        text.replace(",", "\t").encode("utf-16"),
        text.rstrip().encode(),
    ):
        source.write_bytes(saved)
        assert cli.main(["predict", str(source), "--out", str(out)]) == status == 0
        assert list(csv.DictReader(out.open())) == want


def test_a_case_is_predicted_alike_whatever_else_is_in_the_file(tmp_path: Path) -> None:
    """To the last digit that is written, in another order, and alone."""
    source = FOLDER / "torchtitan.csv"
    lines = source.read_text().splitlines()
    found: list[dict[str, str]] = []
    for some in (lines[1:], lines[:0:-1], lines[7:8]):
        (tmp_path / "cases.csv").write_text("\n".join([lines[0], *some]))
        assert cli.main(["predict", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out.csv")]) == 0
        found.append({line.partition(",")[0]: line for line in (tmp_path / "out.csv").read_text().splitlines()[1:]})
    whole, backwards, alone = found
    assert backwards == whole and len(alone) == 1 and alone.items() <= whole.items()


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"layers": "0"}, "layers is '0': give a whole number from 1"),
        ({"hidden": "1e30"}, "hidden is '1e30': give a whole number"),
        ({"intra_node_gbyte_per_s": "-300"}, "give a number from 0.001"),
        ({"global_batch_size": "nan"}, "global_batch_size is 'nan': give a whole number"),
        ({"hidden": ""}, "hidden is empty: give it, such as 4096"),
        ({"gated": "maybe"}, "gated is 'maybe': give true or false"),
        ({"recompute": "ful"}, "did you mean full?"),
        ({"layers_per_stage": "8;x"}, "whole numbers with ; between them"),
        ({"dp": "4"}, "dp 4 x tp 1 x pp 1 x cp 1 = 4, and n_gpus is 8"),
        ({"global_batch_size": "65"}, "does not divide global_batch_size=65: use 64"),
        ({"heads": "24"}, "heads=24 does not divide hidden=4096"),
        ({"tp": "3", "dp": "", "n_gpus": "9", "global_batch_size": "60"}, "tp=3 does not divide heads=32"),
        ({"pp": "8", "dp": "1", "vpp": "2", "schedule": "1f1b"}, "use interleaved"),
        ({"pp": "2", "dp": "4", "layers_per_stage": "20;13"}, "adds up to 33, and layers is 32"),
        ({"pp": "2", "dp": "4", "layers_per_stage": "32"}, "has 1 numbers, and pp 2 x vpp 1 = 2"),
        ({"pp": "64", "n_gpus": "64", "dp": "1"}, "more stages than there are layers"),
        ({"ep": "2"}, "ep=2 without experts"),
        ({"experts": "6", "ep": "4"}, "ep=4 does not divide experts=6"),
        ({"precision": "fp8"}, "A100-SXM4-80GB has no products in fp8: use one of fp32, fp16, bf16"),
        ({"gpu": "A100"}, "use one of A100-SXM4-40GB, A100-SXM4-80GB, A100-PCIe-80GB, or describe it"),
        ({"gpu": "mine"}, '--device FILE.json with {"gpu": "mine"'),
    ],
)
def test_a_bad_row_is_said_with_its_line_and_the_others_are_predicted(
    cells: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, rows = predicted(tmp_path, {}, {"case_id": "bad", **cells}, {"case_id": "c"})
    assert status == 1 and [row["step_time_s"] != "" for row in rows] == [True, False, True]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cases.csv" in line]
    assert ", line 3: " in line and said in line and said in rows[1]["error"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("layers,hiden\n1,2\n", "column 'hiden' is unknown (did you mean hidden?)"),
        ("layers,layers\n1,2\n", "column 'layers' is there 2 times"),
        ("", "has no columns"),
        ("a\0b", "is no CSV file"),
        ('layers,hidden\n"1,2\n', "line 2"),
    ],
)
def test_a_file_that_is_no_table_of_cases_is_one_line(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "cases.csv").write_text(content)
    assert cli.main(["predict", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out.csv")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not (tmp_path / "out.csv").exists()


def test_a_row_with_too_few_cells_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "cases.csv").write_text("layers,hidden\n4\n4,64\n")
    assert cli.main(["predict", str(tmp_path / "cases.csv")]) == 1
    said = capsys.readouterr()
    assert "line 2: 1 cells, and the header has 2" in said.err and len(said.out.splitlines()) == 3


def test_a_tokenizer_is_the_vocabulary_of_rows_that_name_none(tmp_path: Path) -> None:
    rows = ({"vocab": ""}, {"case_id": "b", "vocab": "257"}, {"case_id": "c", "vocab": "50257"})
    plain, given = predicted(tmp_path, *rows)[1], predicted(tmp_path, *rows, words=("--tokenizer", "bytes"))[1]
    memory = [row["memory_gib"] for row in given]
    assert memory[0] == memory[1] != memory[2] and plain[0]["memory_gib"] == memory[2]


def test_columns_that_are_missing_are_defaults(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("layers,hidden\n24,2048\n")
    assert cli.main(["predict", str(tmp_path / "cases.csv"), "--out", str(tmp_path / "out.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "out.csv").open())
    assert float(row["step_time_s"]) > 0 and "gpu=H100-SXM-80GB" in row["assumed"] and "heads=16" in row["assumed"]


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    """A description that says what a known device is predicts nearly the same; half the peak takes longer."""
    like = json.dumps([{"gpu": "half", "like": "A100-SXM4-80GB", "peak_tflops": 156}])
    (tmp_path / "own.json").write_text(like)
    figures = "gpu=mine,arch=Ampere,peak_tflops=312,memory_gib=78.8,memory_gbyte_per_s=2039,link_gbyte_per_s=300"
    words = ("--device", str(tmp_path / "own.json"), "--device", f"{figures},network_gbit_per_s=200")
    status, rows = predicted(tmp_path, {}, {"gpu": "mine"}, {"gpu": "half"}, words=words)
    known, mine, half = (float(row["step_time_s"]) for row in rows)
    assert status == 0 and mine == pytest.approx(known, rel=1e-6) and half > 1.3 * known


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"gpu": "x", "peak_tflop": 1}, "'peak_tflop' is unknown (did you mean peak_tflops?)"),
        ({"gpu": "x", "peak_tflops": 1, "memory_gib": 1}, "memory_gbyte_per_s is missing"),
        ({"gpu": "x", "memory_gbyte_per_s": 1, "memory_gib": 1}, "peak_tflops is missing"),
        ({"gpu": "x", "like": "A100-SXM4-80GB", "memory_gib": -1}, "memory_gib is -1: give a number above 0"),
        ({"gpu": "x", "like": "A100-SXM4-80GB", "gpus_per_node": 2.5}, "give a whole number"),
        ([], "describes no device"),
    ],
)
def test_a_device_that_cannot_be_is_one_line(
    described: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own.json").write_text(json.dumps(described))
    assert predicted(tmp_path, {}, words=("--device", str(tmp_path / "own.json")))[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_it_starts_without_torch() -> None:
    code = (
        "import sys; from paralab.commands import predict; from paralab.planning import predict; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
