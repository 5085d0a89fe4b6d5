"""What a report says first, and what its tables leave out."""

from itertools import chain
from pathlib import Path

import pytest

from paralab.benchmarks.report import sections, tables
from paralab.benchmarks.report.lead import Lead, lead
from paralab.benchmarks.report.sections import Piece
from paralab.benchmarks.report.sources import load
from paralab.benchmarks.report.work import amount
from paralab.records.row import RunRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import runs

A = [0.100, 0.101, 0.099, 0.102, 0.098, 0.1005]


def pieces_of(folder: Path, *records: list[RunRecord]) -> list[Piece]:
    for record in chain.from_iterable(records):
        append(folder / "r.csv", record)
    return sections.pieces(load([folder / "r.csv"]))


def test_one_piece_of_work_is_its_own_verdict_and_picture(tmp_path: Path) -> None:
    slower = runs([2 * t for t in A], first=1, every=2, strategy="zero3")
    (piece,) = found = pieces_of(tmp_path, runs(A, every=2), slower)
    said = lead(found)
    assert said.sentences == ["Compared with ddp (100 ms a step): Slower: zero3 by 100.0%."]
    assert said.chart and said.chart.title == f"Step time: {piece.name}" and not said.further


def test_several_pieces_are_counted_and_the_largest_difference_is_drawn(tmp_path: Path) -> None:
    def pair(size: str, times: float, n: int = 6) -> list[RunRecord]:
        other = [times * t for t in A[:n]]
        return [*runs(A[:n], every=2, size=size), *runs(other, first=1, every=2, strategy="zero3", size=size)]

    found = pieces_of(tmp_path, pair("a", 2), pair("b", 0.5), pair("c", 0.25), pair("d", 2, n=2), runs(A, size="e"))
    said = lead(found)
    assert said.sentences == [
        "In 2 of 4 pieces of work something is faster than its baseline, most of all: zero3 is 75.0% faster than ddp "
        "(gpt2 c, sequence 128, batch 8, fp32, 2 processes, CPU (gloo))."
    ]
    assert [line.split(",")[0] for line in said.further] == [
        "In 1 nothing is faster than its baseline and something is slower",
        "In 1 there is too little evidence for a verdict.",
        "1 more was done in one way only",
    ]
    assert said.chart and "gpt2 c" in said.chart.title


def test_where_nothing_is_compared_that_is_said(tmp_path: Path) -> None:
    found = pieces_of(tmp_path, runs(A, size="a"), runs(A, size="b"))
    nothing = "Each of 2 pieces of work was done in one way only: there is nothing to compare."
    assert lead(found) == Lead([nothing], None)


def test_columns_of_which_nothing_is_known_are_left_out(tmp_path: Path) -> None:
    (piece,) = pieces_of(tmp_path, runs(A), runs(A, strategy="zero3", mfu=0.5))
    names = [column.name for column in tables.of_ways(piece).columns]
    assert "MFU" in names and "loss off by" not in names and "compared with" not in names and "step / ddp" in names


@pytest.mark.parametrize(("number", "name"), [(5, "range"), (6, "95% interval")])
def test_the_interval_of_few_runs_is_called_their_range(tmp_path: Path, number: int, name: str) -> None:
    (piece,) = pieces_of(tmp_path, runs(A[:number]))
    table = tables.of_ways(piece)
    place = [column.name for column in table.columns].index(name)
    ends = f"{1e3 * min(A[:number]):.3g} to {1e3 * max(A[:number]):.3g} ms"
    assert (table.rows[0][place].text == ends) == (name == "range")


def test_a_note_stands_once(tmp_path: Path) -> None:
    late = {"steady": False}
    (piece,) = pieces_of(tmp_path, runs(A, every=3, **late), runs(A, first=1, every=3, strategy="zero1"),
                         runs(A, first=2, every=3, strategy="zero3"))  # fmt: skip
    found = sections.notes(piece)
    assert found.count("ddp: 6 of 6 runs never reached a steady step time") == 1 and len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (2048, "2 KiB"), (3 << 20, "3 MiB"), (1.5 * 2**30, "1.5 GiB"), (None, "–")]
)
def test_sizes_are_in_powers_of_1024(size: float | None, text: str) -> None:
    assert amount(size, "process_peak_bytes") == text
