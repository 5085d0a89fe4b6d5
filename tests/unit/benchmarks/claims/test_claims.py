"""Claims: what is measured for them, the rules by which rows are judged, and the page that is made of both."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from paralab.benchmarks.claims import __main__ as command
from paralab.benchmarks.claims import measuring
from paralab.benchmarks.claims.claims import CLAIMS
from paralab.benchmarks.claims.findings import Speed, of_case, speeds
from paralab.benchmarks.claims.of_memory import bytes_per_parameter, zero
from paralab.benchmarks.claims.of_speed import channels_last, nodes, workers
from paralab.benchmarks.claims.series import Series, every
from paralab.benchmarks.documents import claims as page
from paralab.benchmarks.programs import program
from paralab.records.reading import read
from paralab.records.row import RunRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

NOISE = (1.0, 1.01, 0.99, 1.02, 0.98, 1.005, 0.995)


def paired(times: Sequence[float], **cells: Sequence[object]) -> list[RunRecord]:
    """Return interleaved repeats of cases whose steps take these times; either comes first in some. cells: of each."""
    found = []
    for repeat, noise in enumerate(NOISE):
        order = list(range(len(times)))[:: -1 if repeat % 2 else 1]
        for place, case in enumerate(order):
            mine = {name: values[case] for name, values in cells.items()}
            made = run(repeat * len(times) + place, group="g", step_time_p50_s=times[case] * noise, **mine)
            found.append(replace(made, repeat=repeat, samples_per_s=8 / (times[case] * noise)))
    return found


def test_every_claim_has_series_that_can_run() -> None:
    known = {series.name: series for series in every(2)}
    assert {name for claim in CLAIMS for name in claim.series} == set(known)
    for series in known.values():
        if series.kind == "run" and not series.on_gpu:
            stops = list(measuring.stops(series, "g"))
            assert len(stops) == len(series.cases) * series.repeats
            assert len({stop.run for stop in stops}) == len(series.cases)
            assert sum(stop.parity for stop in stops) == len(series.cases) * series.parity
    assert [case["loader_workers"] for case in known["workers"].cases] == [0, 1, 2, 4]


def test_repeats_are_in_an_order_that_is_drawn() -> None:
    series = next(series for series in every(2) if series.name == "channels-last")
    firsts = [stop.run.channels_last for stop in list(measuring.stops(series, "g"))[::2]]
    assert set(firsts) == {False, True}


def test_a_ratio_of_pairs_has_the_interval_of_its_pairs() -> None:
    rows = paired((0.1, 0.08), channels_last=(False, True))
    (speed,) = speeds(rows, ({"channels_last": False}, {"channels_last": True}))
    assert speed is not None and speed.pairs == len(NOISE)
    assert speed.times == pytest.approx(1.25) and speed.low == pytest.approx(1.25) == speed.high
    assert str(speed) == "1.25 times [1.25, 1.25]"
    assert str(speeds(rows[:1], ({"channels_last": False}, {"channels_last": True}))[0]) == "None"


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.2, 1.5), "holds"),
        ((0.9, 1.1), "not enough evidence"),
        ((0.5, 0.9), "does not hold here"),
        ((1.7, 1.9), "not enough evidence"),
        ((1.9, 2.1), "does not hold here"),
        ((None, None), "not enough evidence"),
    ],
)
def test_a_range_is_judged_by_the_whole_interval(interval: tuple[float | None, float | None], verdict: str) -> None:
    assert Speed(1.0, *interval, pairs=6).judged(1.0, 1.8) == verdict


def test_a_claim_is_judged_by_what_rows_say() -> None:
    faster = {"channels-last": paired((0.1, 0.08), channels_last=(False, True))}
    slower = {"channels-last": paired((0.1, 0.13), channels_last=(False, True))}
    assert (channels_last(faster).verdict, channels_last(slower).verdict) == ("holds", "does not hold here")
    assert channels_last(slower).figure == "0.77 times [0.77, 0.77] as fast"


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ((0.10, 0.09, 0.08, 0.09), "holds"),
        ((0.10, 0.05, 0.08, 0.09), "does not hold here"),  # one worker is faster than as many as cores
        ((0.10, 0.12, 0.14, 0.16), "does not hold here"),
    ],
)
def test_as_many_workers_as_cores(times: tuple[float, ...], verdict: str) -> None:
    assert workers({"workers": paired(times, loader_workers=(0, 1, 2, 4))}).verdict == verdict


def test_three_nodes_hold_in_part_where_one_link_is_slow() -> None:
    shared = {"exposed_comm_share": (0.0, 0.1), "cpu_utilisation_mean_share": (0.9, 0.9), "nodes": (1, 3)}
    fast = paired((0.3, 0.15), link_mbit_per_s=(1000.0, 1000.0), **shared)
    slow = paired((0.3, 0.9), link_mbit_per_s=(10.0, 10.0), **shared)
    found = nodes({"nodes": [*fast, *slow]})
    assert found.verdict == "holds in part" and found.why.startswith("It holds at 1000 Mbit/s.")
    assert nodes({"nodes": fast}).verdict == "holds" and nodes({"nodes": slow}).verdict == "does not hold here"


def test_bytes_of_other_recipes_are_those_that_megatron_core_states() -> None:
    """20, 18 and 16: the table of its page on the distributed optimizer."""
    rows = [run(precision=name, memory_state_peak_bytes=1600, parameters=100) for name in ("fp32", "bf16")]
    found = bytes_per_parameter({"precision": rows})
    assert [line.split(" | ")[-1].strip(" |") for line in found.table[-3:]] == ["20", "18", "16"]
    assert found.verdict == "holds in part" and found.figure.startswith("16.00 bytes a parameter")


def test_what_zero_saves_is_counted_and_judged(tmp_path: Path) -> None:
    """On one real dry run of each stage on two ranks: optimizer states are halved, then everything is."""
    shared = {"model": "gpt2", "size": "2x32x4v257", "seq_len": 16, "global_batch_size": 4}
    cases = tuple({"layout": f"dp2{stage}"} for stage in ("", "/zero1", "/zero2", "/zero3"))
    measuring.measure(Series("zero", shared, cases, repeats=1, kind="dry run"), tmp_path)
    rows = read(tmp_path / "zero.csv")
    assert [row.status for row in rows] == ["dry run"] * 4
    found = zero({"zero-on-2": [], "zero-on-4": [], "zero": rows})
    times = [float(line.split(" | ")[5].strip(" |")) for line in found.table[2:5]]
    assert times[0] == 1.33  # 16 bytes over 12
    assert times[1] == times[2] and 1.8 < times[1] < 2  # over 8, and the whole gradients of one block
    assert found.verdict == "holds in part" and "holds for ZeRO-2" in found.why


def test_rows_of_another_device_stay(tmp_path: Path) -> None:
    kept, new = tmp_path / "a.csv", tmp_path / "new.csv"
    for row in (run(0, device="cuda", gpu_name="GPU 1"), run(1)):
        append(kept, row)
    append(new, run(2))
    measuring._replace(kept, new)
    assert [(row.device, row.repeat) for row in read(kept)] == [("cuda", 0), ("cpu", 2)]


def test_what_was_not_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in paired((0.1, 0.08), channels_last=(False, True)):
        append(tmp_path / "channels-last.csv", row)
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    text = page.page()
    assert "| [Channels last](#channels-last) | holds | not measured | 1.25 times" in text
    assert "| [ZeRO](#zero) | not measured | not measured |  |" in text
    assert "**CPU: cannot be tested here**, where there is no copy to a GPU." in text
    assert "**GPU**: not measured: no machine with one has run the command." in text


@pytest.mark.parametrize(
    ("word", "says"),
    [("checkpoint", "did you mean checkpointing"), ("--repeats=0", "at least 1"), ("--nope", "unknown")],
)
def test_what_is_not_there_is_refused_in_one_line(
    word: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["claims", word])
    with pytest.raises(SystemExit) as ended:
        program(command.main, "claims")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("claims: ") and says in line


def test_a_series_of_a_gpu_is_left_out_without_one(tmp_path: Path) -> None:
    pinned = [series for series in every(2) if series.on_gpu]
    said = list(measuring.measure_all(pinned, tmp_path, repeats=1, has_gpu=False))
    assert said == ["1 of 1: pinned left out: it needs a GPU"] and not list(tmp_path.iterdir())


def test_cases_are_told_apart_by_their_columns() -> None:
    rows = paired((0.1, 0.2), link_mbit_per_s=(1000.0, 10.0), nodes=(1, 1))
    assert len(of_case(rows, {"nodes": 1, "bandwidth": 10.0})) == len(NOISE)
