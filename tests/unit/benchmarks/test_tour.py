"""What a tour prints: a table that fits a terminal, what one saw, and what to type next."""

from dataclasses import replace
from typing import Any

import pytest

from paralab.benchmarks.tour import TourConfig
from paralab.benchmarks.tour_worker import Table, choose, conclusions, next_commands
from paralab.records.proven import NOT_PROVEN, WHOLE
from paralab.records.row import RunRecord

MIB = 2**20


def row(strategy: str, layout: str, **columns: Any) -> RunRecord:
    return replace(
        RunRecord(
            run_id=strategy,
            started_at="2026-01-01T00:00:00.000+00:00",
            status="ok",
            strategy_requested=strategy,
            strategy=strategy,
            layout=layout,
            model="gpt2",
            device="cpu",
            unit="tokens",
            world_size=4,
            parity=True,
            loss_last=10.101,
            loss_difference_max=9e-8,
            grad_norm_difference_max=2e-7,
            parameter_difference_max=1e-4,
            memory_tensors_peak_bytes=421 * MIB,
            memory_state_peak_bytes=110 * MIB,
            predicted_state_bytes=110 * MIB,
        ),
        **columns,
    )


ROWS = [
    row("single", "dp1", tokens_per_s=4633.0, samples_per_s=18.1),
    row("zero3", "dp4/zero3", tokens_per_s=2864.0, samples_per_s=11.2, memory_state_peak_bytes=46 * MIB),
]


def test_the_table_of_eight_processes_fits_80_columns(capsys: pytest.CaptureFixture) -> None:
    works, _ = choose(TourConfig(size="tiny"), 8)
    table = Table.of(works)
    table.header()
    for work in works:
        table.row(row(work.strategy, str(work.layout), tokens_per_s=234567.0))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(works) and {len(line) for line in lines} == {80}
    assert any("dp2.tp2.pp2" in line for line in lines)


def test_a_strategy_that_computes_something_else_says_what_differs(capsys: pytest.CaptureFixture) -> None:
    Table(9).row(replace(ROWS[1], parity=False, tokens_per_s=1.0))
    first, said = capsys.readouterr().out.split("\n", 1)
    assert "FAILED" in first
    assert " ".join(said.split()) == (
        "zero3 differs from one process: loss 9.0e-08, gradient norm 2.0e-07 (relative), parameters 1.0e-04"
    )


@pytest.mark.parametrize(
    ("cells", "cell", "said"),
    [
        ({"parity_scope": "2 of 32 blocks"}, "part", "zero3: parity passed on 2 of 32 blocks"),
        ({"parity": None, "parity_result": NOT_PROVEN}, "none", f"zero3: parity {NOT_PROVEN}"),
        ({"parity_scope": WHOLE}, "passed", ""),
    ],
)
def test_parity_on_a_part_is_not_shown_as_passed(
    cells: dict[str, Any], cell: str, said: str, capsys: pytest.CaptureFixture
) -> None:
    found = replace(ROWS[1], tokens_per_s=1.0, **cells)
    Table(9).row(found)
    first, below = capsys.readouterr().out.split("\n", 1)
    assert first.split()[2] == cell and " ".join(below.split()) == said
    agrees = conclusions([ROWS[0], found], cores=2.0)[0]
    assert ("zero3 on a part of the work" in agrees) == (cell == "part")


def test_three_sentences_say_what_one_saw() -> None:
    agrees, fast, small = conclusions(ROWS, cores=2.0)
    assert agrees.startswith("2 of 2 strategies compute what one process computes: losses within 9e-08")
    assert fast.startswith("Fastest here: single, 4,633 tokens/s: the processes share 2 CPU cores")
    assert small.startswith("Smallest: zero3 keeps 46.0 MiB") and "single 110.0" in small


def test_what_failed_is_neither_fastest_nor_smallest() -> None:
    wrong = row("zero2", "dp4/zero2", parity=False, samples_per_s=99.0, memory_state_peak_bytes=1, tokens_per_s=9e9)
    agrees, fast, small = conclusions([*ROWS, wrong], cores=2.0)
    assert agrees.startswith("2 of 3") and "single" in fast and "zero3" in small


def test_the_next_commands_are_of_this_tour() -> None:
    report, explain = next_commands(TourConfig(), ROWS, "runs/tour.csv").values()
    assert report == "paralab report runs/tour.csv --out runs/tour.html"
    assert explain == "paralab explain zero3 --model gpt2 --nproc 4"
    quicker = row("ddp", "dp4", samples_per_s=12.0)
    *_, bench = next_commands(TourConfig(size="tiny"), [*ROWS, quicker], "runs/tour.csv").values()
    assert bench == "paralab bench --model gpt2 --size tiny --strategies ddp,zero3 --nprocs 4"
    _, alone = next_commands(TourConfig(), ROWS[:1], "runs/tour.csv").values()
    assert alone == "paralab train --model gpt2 --strategy single --out runs/first"
