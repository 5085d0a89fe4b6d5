"""Pictures of results and of training: what is drawn is what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from paralab.benchmarks.report import plot
from paralab.errors import DataError, UsageError
from paralab.records.log import StepLog, StepRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import run

pytest.importorskip("matplotlib")


def trained(folder: Path, losses: list[float], *, strategy: str) -> Path:
    """Write what `paralab train` leaves, as far as a picture reads it."""
    folder.mkdir()
    (folder / "config.toml").write_text(
        f'model = "gpt2"\nsize = "nano"\ndata = "alice"\nstrategy = "{strategy}"\nlayout = "dp2"\n'
    )
    (folder / "log").mkdir()
    log = StepLog(folder / "log" / "rank0.jsonl")
    for step, loss in enumerate(losses):
        log.write(
            StepRecord(
                step=step,
                loss=loss,
                grad_norm=1.0,
                learning_rate=1.0,
                step_time_s=0.1,
                data_wait_s=0.0,
                samples=8,
                measured=True,
            )
        )
    log.close()
    (folder / "validation.jsonl").write_text(json.dumps({"step": 2, "loss": 7.5}) + "\n")
    return folder


def test_results_are_a_dot_a_run(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for number, (strategy, rate) in enumerate([("ddp", 100.0), ("ddp", 140.0), ("zero3", 80.0)]):
        append(file, run(number, strategy=strategy, tokens_per_s=rate))
    append(file, run(9, strategy="tensor", status="crash"))
    (axes,) = plot.results([file]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ddp", "zero3"]
    drawn = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata())]
    assert drawn == [[100.0, 140.0], [120.0], [80.0], [80.0]]  # runs, and a mark at their median


def test_sizes_and_models_are_kept_apart(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for number, (model, size) in enumerate([("gpt2", "124m"), ("gpt2", "1.5b"), ("resnet", "20")]):
        append(file, run(number, model=model, size=size, strategy="single"))
    first, second = plot.results([file]).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["124m single", "1.5b single"]
    assert (first.get_title(), second.get_title()) == ("rows: gpt2", "rows: resnet 20")
    assert [label.get_text() for label in second.get_yticklabels()] == ["single"]


def test_only_failures_are_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    append(file, run(0, status="crash"))
    with pytest.raises(DataError, match="no run in these files has succeeded"):
        plot.results([file])


def test_curves_are_losses_and_their_distance_from_the_first(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", [10.0, 9.0, 8.0], strategy="single")
    second = trained(tmp_path / "b", [10.0, 9.0, 8.8], strategy="zero3")
    upper, lower = plot.curves([first, second]).axes
    assert [list(line.get_ydata()) for line in upper.lines] == [[10, 9, 8], [7.5], [10, 9, 8.8], [7.5]]
    (gaps,) = lower.lines
    np.testing.assert_allclose(gaps.get_ydata(), [0, 0, 0.1])


def test_a_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = trained(tmp_path / "a", [3.0, 2.0], strategy="ddp")
    assert plot.main([str(folder), "--out", str(tmp_path / "curves.svg")]) == 0
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert "curves.svg" in capsys.readouterr().out


def test_one_run_has_no_empty_panel_below(tmp_path: Path) -> None:
    one = trained(tmp_path / "a", [3.0, 2.0], strategy="ddp")
    (only,) = plot.curves([one]).axes
    assert only.get_xlabel() == "step"
    other = trained(tmp_path / "b", [3.0, 2.0], strategy="ddp")
    (other / "config.toml").write_text((other / "config.toml").read_text().replace("alice", "bob"))
    second = trained(tmp_path / "c", [3.0, 2.5], strategy="ddp")
    axes = plot.curves([one, other, second]).axes
    assert len(axes) == 3 and all(panel.lines for panel in axes)


def test_a_cut_last_line_of_validation_is_passed_over_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = trained(tmp_path / "a", [3.0, 2.0], strategy="ddp")
    with open(folder / "validation.jsonl", "a") as file:
        file.write('{"step": 6, "sam')
    assert plot.main([str(folder), "--out", str(tmp_path / "p.svg")]) == 0
    assert "validation.jsonl: the last line is not finished and was skipped" in capsys.readouterr().err
    for line in ("{}", "[1]", "nonsense", '{"step": null, "loss": 1}'):
        (folder / "validation.jsonl").write_text(f'{{"step": 2, "loss": 1.0}}\n{line}\n')
        with pytest.raises(DataError, match=r"validation\.jsonl line 2 is no validation result"):
            plot.main([str(folder), "--out", str(tmp_path / "p.svg")])


@pytest.mark.parametrize("name", ["p.xyz", "p", "p.csv", "rows.csv/p.png", "no/p.png"])
def test_a_place_for_no_picture_is_refused_before_the_work(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path / "rows.csv", run())
    monkeypatch.setattr(plot, "_draw", lambda *_: pytest.fail("drawn first"))
    with pytest.raises(UsageError, match="--out"):
        plot.main([str(tmp_path / "rows.csv"), "--out", str(tmp_path / name)])


def test_files_of_one_name_have_panels_of_other_titles(tmp_path: Path) -> None:
    for folder, number in (("old", 0), ("new", 1)):
        append(tmp_path / folder / "bench.csv", run(number))
    titles = [axes.get_title() for axes in plot.results(sorted(tmp_path.glob("*/bench.csv"))).axes]
    assert titles == ["new/bench: gpt2 nano", "old/bench: gpt2 nano"]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    append(file, run())
    with pytest.raises(UsageError, match="do not fit one picture"):
        plot.main([str(file), str(tmp_path)])
    with pytest.raises(DataError, match="is not there"):
        plot.main([str(tmp_path / "none.csv")])
    with pytest.raises(DataError, match=r"holds no config\.toml"):
        plot.main([str(tmp_path)])
