"""The same work on different machines: which rows stand beside each other, and what each costs."""

import re
from pathlib import Path

import pytest

from paralab.benchmarks.report.machines import of_machines, prices_of, text
from paralab.benchmarks.report.report import main
from paralab.benchmarks.report.sections import pieces
from paralab.benchmarks.report.sources import load
from paralab.errors import UsageError
from paralab.pages.table import Table
from paralab.records.row import RunRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

NODES = {
    "nodes": 3,
    "world_size": 3,
    "link_mbit_per_s": 1000.0,
    "cores_allowed": 0.6,
    "cpu_utilisation_mean_share": 0.9,
}
GPU = {"device": "cuda", "gpu_name": "GPU 1", "world_size": 1, "gpu_power_mean_w": 300.0, "backend": "nccl",
       "gpu_utilisation_mean_share": 0.8}  # fmt: skip


def tables(folder: Path, *rows: RunRecord, prices: str | None = None) -> list[Table]:
    file = folder / "rows.csv"
    for row in rows:
        append(file, row)
    return of_machines(pieces(load([file])), prices_of(prices))


def cells(table: Table, name: str) -> list[str]:
    (place,) = (i for i, column in enumerate(table.columns) if column.name == name)
    return [row[place].text for row in table.rows]


def test_a_cpu_three_nodes_and_a_gpu_stand_side_by_side(tmp_path: Path) -> None:
    rows = (run(0, samples_per_s=100.0), run(1, samples_per_s=200.0, **NODES), run(2, samples_per_s=1500.0, **GPU))
    (found,) = tables(tmp_path, *rows, prices="cpu=0.36,gpu=3.6")
    assert cells(found, "machine") == [
        "1 CPU node: CPU 1, 2 cores",
        "3 CPU nodes at 1000 Mbit/s: CPU 1, 0.6 cores each",
        "1 GPU: GPU 1",
    ]
    assert cells(found, "samples/s") == ["100", "200", "1,500"]
    # 0.36 $/h are 1e-4 $/s: a million samples take 1e4 s on one node, 5e3 s on each of three; at 1e-3 $/s 667 s
    assert cells(found, "$ a million samples") == ["1", "1.5", "0.667"]
    assert cells(found, "energy a sample") == ["–", "–", "0.2 J"]  # 300 W over 1500 samples/s
    assert cells(found, "notes")[1] == "simulated on one machine"
    said = text([found])
    assert "3 CPU nodes at 1000 Mbit/s" in said and "not ranked" in said
    head, *lines = (line.split() for line in said.splitlines() if line.startswith("    "))
    assert head[-4:] == ["$", "a", "million", "samples"] and "0.667" in [words[-1] for words in lines]


def test_more_processes_of_one_machine_are_no_other_machine(tmp_path: Path) -> None:
    assert tables(tmp_path, run(0, world_size=1), run(1, world_size=2)) == []


def test_other_work_stands_elsewhere(tmp_path: Path) -> None:
    assert tables(tmp_path, run(0), run(1, global_batch_size=16, **GPU)) == []
    assert len(tables(tmp_path, run(2, global_batch_size=16))) == 1


def test_nothing_is_known_of_energy_and_cost_without_instrument_and_price(tmp_path: Path) -> None:
    (found,) = tables(tmp_path, run(0), run(1, **NODES))
    assert not {"energy a sample", "$ a million samples"} & {column.name for column in found.columns}


@pytest.mark.parametrize("prices", ["cuda=1", "gpu", "gpu=-1", "gpu=dear", "gpu=inf"])
def test_what_is_no_price_is_refused(prices: str) -> None:
    with pytest.raises(UsageError, match="--price-per-hour"):
        prices_of(prices)


def test_the_page_has_the_section_and_the_terminal_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(tmp_path / "cpu.csv", run(0))
    append(tmp_path / "gpu.csv", run(1, **GPU))
    files = [str(tmp_path / name) for name in ("cpu.csv", "gpu.csv")]
    assert main([*files, "--out", str(tmp_path / "a.html"), "--price-per-hour", "gpu=2.5"]) == 0
    said = capsys.readouterr().out
    assert "1 GPU: GPU 1" in said and len(re.findall(r"^    ddp +[12] ", said, re.MULTILINE)) == 2
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert '<section id="machines">' in page and page.count("1 GPU: GPU 1") == 1
