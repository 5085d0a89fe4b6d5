"""Runs that are to reach a loss: which step reaches it, where the run ends, and how such runs are compared."""

import pytest

from paralab.benchmarks.case.run import run_case
from paralab.benchmarks.report import sections, tables, to_loss
from paralab.benchmarks.report.compare import main
from paralab.benchmarks.report.comparing import compare_files, compare_ways
from paralab.benchmarks.report.metrics import METRICS, usual
from paralab.benchmarks.report.outcome import gate
from paralab.benchmarks.report.sources import load
from paralab.benchmarks.run_start import summary
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

TIME = METRICS["time_to_loss_s"]


@pytest.mark.parametrize(
    ("losses", "target", "steps"),
    [([5.0] * 7, 5.0, None), ([5.0] * 8, 5.0, 8), ([5.0] * 8, 4.99, None), ([9.0] + [5.0] * 12, 5.0, 9),
     ([5.0] * 8 + [1.0] + [5.0] * 9, 4.6, 9)],
)  # fmt: skip
def test_a_loss_is_reached_by_the_mean_of_eight_steps(losses, target, steps):
    assert to_loss.steps_to(losses, target) == steps


def test_time_and_samples_are_those_of_the_steps_so_far():
    found = to_loss.columns([9.0] * 4 + [1.0] * 8, [1.0] * 4 + [0.5] * 8, 5.0, global_batch_size=16)
    assert found == {"until_loss": 5.0, "steps_to_loss": 8, "samples_to_loss": 128, "time_to_loss_s": 6.0}
    missed = to_loss.columns([9.0] * 12, [1.0] * 12, 5.0, global_batch_size=16)
    assert missed == {"until_loss": 5.0, "steps_to_loss": None}


def test_runs_are_judged_by_the_time_to_a_loss_where_all_were_to_reach_one():
    both = [run(0, until_loss=3.0), run(1)]
    assert [usual(rows).column for rows in (both[:1], both)] == ["time_to_loss_s", "step_time_p50_s"]


def measured(until_loss):
    config = RunConfig(size="tiny", strategy="single", nproc=1, global_batch_size=4, warmup=3, steps=24)
    work, rank = resolve(config), Rank.from_env()
    mesh = make_mesh(work.layout, rank.device)
    return run_case(work, requested=Requested.of(config, rank), rank=rank, mesh=mesh, until_loss=until_loss)


def test_a_run_ends_where_it_reaches_its_loss():
    whole = measured(None)
    assert (whole.until_loss, whole.time_to_loss_s) == (None, None)
    target = (whole.loss_first + whole.loss_last) / 2
    found = measured(target)
    steps = found.steps_to_loss
    assert 8 <= steps < 27 and found.samples_to_loss == 4 * steps and found.until_loss == target
    assert found.measured_steps <= steps - 3 and found.loss_last > whole.loss_last
    assert 0.5 * steps * found.step_time_p50_s < found.time_to_loss_s < found.wall_s
    assert f"loss {target:g} after {4 * steps} samples" in summary(found, "x.csv")
    missed = measured(0.01)
    assert (missed.steps_to_loss, missed.samples_to_loss, missed.time_to_loss_s) == (None, None, None)
    assert missed.loss_last == whole.loss_last and "did not reach loss 0.01" in summary(missed, "x.csv")


def reaching(time_s, *, first=0, samples=800, **cells):
    cells = {"until_loss": 2.5, "steps_to_loss": samples // 8, "samples_to_loss": samples} | cells
    return [run(first + 2 * i, time_to_loss_s=time_s + 0.01 * i, **cells) for i in range(5)]


MISSED = {"steps_to_loss": None, "samples_to_loss": None}


def missing(**cells):
    return [run(2 * i + 1, until_loss=2.5, time_to_loss_s=None, **MISSED, **cells) for i in range(5)]


def test_times_to_a_loss_are_compared_and_samples_exactly():
    two = [reaching(10.0)[0], reaching(20.0)[0]]
    assert to_loss.said("A", two) == ["A: loss 2.5 after 800 samples, in 15 s (median)"]
    (found,) = compare_files(reaching(10.0), reaching(12.0, first=1, samples=640), TIME).comparisons
    assert found.verdict == "worse" and found.ratio == pytest.approx(1.2, rel=0.01)
    assert [str(change) for change in found.changes] == ["samples_to_loss: 800 -> 640 (-20%)"]
    assert found.notes == (
        "A ddp: loss 2.5 after 800 samples, in 10 s (median)", "B ddp: loss 2.5 after 640 samples, in 12 s (median)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("base", "other", "status"), [(reaching(10.0), missing(), 2), (missing(), reaching(10.0), 4), (missing(), [], 4)]
)
def test_what_is_not_reached_is_said_and_is_no_time(base, other, status):
    (found,) = compare_files(base, other or missing(seed=1), TIME).comparisons
    assert (found.verdict, found.p, gate(found, 5)) == ("not reached", None, status)
    assert any("5 of 5 runs did not reach loss 2.5, which counts as no time" in note for note in found.notes)


def test_one_run_that_did_not_reach_it_is_enough(tmp_path, capsys):
    some = [*reaching(9.0)[:4], *missing()[:1]]
    for number, rows in enumerate((reaching(10.0), some)):
        for row in rows:
            append(tmp_path / f"{number}.csv", row)
    assert main([str(tmp_path / "0.csv"), str(tmp_path / "1.csv")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("time_to_loss_s, lower is better") and "not reached" in out
    assert "1 of 5 runs did not reach loss 2.5" in out


def test_the_report_judges_by_the_time_to_a_loss_too(tmp_path):
    rows = [*reaching(10.0), *reaching(12.0, first=1, samples=640, strategy="zero1")]
    for row in rows:
        append(tmp_path / "0.csv", row)
    (piece,) = sections.pieces(load([tmp_path / "0.csv"]))
    assert piece.verdict == ["Compared with ddp (10 s to the loss): Slower: zero1 by 20.0%."]
    (found,) = compare_ways(rows, TIME).comparisons
    assert [way.against_base for way in piece.ways if way.against_base] == [found]
    table = tables.of_ways(piece)
    shown = {column.name: cell.text for column, cell in zip(table.columns, table.rows[1], strict=True)}
    assert (shown["time to loss"], shown["samples to loss"]) == ("12 s", "640")
    assert shown["time to loss / ddp"].startswith("1.200 [")
    for row in missing(strategy="zero3"):
        append(tmp_path / "0.csv", row)
    (piece,) = sections.pieces(load([tmp_path / "0.csv"]))
    (said,) = piece.verdict
    assert said.endswith("Not compared, as a run of one of the two did not reach the loss: zero3.")


def test_another_loss_is_other_work():
    other = reaching(10.0, first=1, until_loss=2.0)
    (refusal,) = compare_files(reaching(10.0), other, TIME).refusals
    assert "loss to reach: 2.5 / 2: run both with one --until-loss" in str(refusal)
