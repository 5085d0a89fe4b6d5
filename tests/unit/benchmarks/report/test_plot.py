"""Pictures of results and of training: what is drawn is what was measured."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from paralab.benchmarks.report import panels, plot
from paralab.errors import ConfigError, DataError, UsageError
from paralab.pages import palette, raster
from paralab.pages.picture import picture
from paralab.records.log import StepLog, StepRecord
from paralab.records.writing import append
from tests.unit.synthetic_runs import run


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


def tips(drawing: str) -> list[str]:
    """Return what the elements of a drawing say of themselves, in their order."""
    return re.findall(r"<title>([^<]*)</title>", drawing)


def test_results_are_a_dot_a_run_from_zero_on(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for number, (strategy, rate) in enumerate([("ddp", 100.0), ("ddp", 140.0), ("zero3", 80.0)]):
        append(file, run(number, strategy=strategy, tokens_per_s=rate))
    append(file, run(9, strategy="tensor", status="crash"))
    (((chart,),),) = [panels.results([file])]
    assert tips(chart.drawing) == ["ddp: 100", "ddp: 140", "zero3: 80"]
    assert ">120<" in chart.drawing and ">0<" in chart.drawing  # the median, and where the axis begins
    assert (
        chart.caption == "tokens/s, all processes. One dot is one run. The band is their range, the bar their median."
    )


def test_sizes_and_models_are_kept_apart(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for number, (model, size) in enumerate([("gpt2", "124m"), ("gpt2", "1.5b"), ("resnet", "20")]):
        append(file, run(number, model=model, size=size, strategy="single"))
    ((first, second),) = panels.results([file])
    assert (first.title, second.title) == ("rows: gpt2", "rows: resnet 20")
    assert "124m single" in first.drawing and "1.5b single" in first.drawing and ">single<" in second.drawing


def test_a_strategy_has_its_colour_and_rows_for_what_else_differs(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    for number, world_size in enumerate((2, 4)):
        append(file, run(number, strategy="zero3", world_size=world_size))
    append(file, run(2, strategy="ddp", world_size=2))
    ((chart,),) = panels.results([file])
    assert [tip.split(":")[0] for tip in tips(chart.drawing)] == [
        "zero3 2 processes", "zero3 4 processes", "ddp 2 processes",
    ]  # fmt: skip
    colours = re.findall(r'class="mark c-(\w+) soft dot"', chart.drawing)
    names = [palette.STRATEGIES[name].colour for name in ("zero3", "zero3", "ddp")]
    assert colours == names


def test_only_failures_are_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    append(file, run(0, status="crash"))
    with pytest.raises(DataError, match="no run in these files has succeeded"):
        panels.results([file])


def test_curves_are_losses_and_their_distance_from_the_first(tmp_path: Path) -> None:
    first = trained(tmp_path / "a", [10.0, 9.0, 8.0], strategy="single")
    second = trained(tmp_path / "b", [10.0, 9.0, 8.8], strategy="zero3")
    (losses,), (distance,) = panels.curves([first, second])
    assert losses.title == "gpt2 nano on alice: loss" and distance.title == "Loss: difference from single dp2"
    assert tips(losses.drawing) == [
        "single dp2",
        "single dp2, held out: 7.5",
        "zero3 dp2",
        "zero3 dp2, held out: 7.5",
    ]
    (points,) = re.findall(r'points="([^"]*)" class="line', distance.drawing)
    equal, same, apart = (float(place.split(",")[1]) for place in points.split())
    assert equal == same > apart  # zeros stand at the foot of the logarithmic axis, 0.1 at its top
    assert ">1e-01<" in distance.drawing and ">0<" in distance.drawing


def test_curves_that_coincide_are_one_line(tmp_path: Path) -> None:
    falling = [10.0 - step / 4 for step in range(20)]
    folders = [trained(tmp_path / "a", falling, strategy="single")]
    for name, off in (("ddp", 1e-7), ("zero1", 2e-7), ("zero3", 1e-7), ("tensor", 1e-2)):
        folders.append(trained(tmp_path / name, [loss * (1 + off) for loss in falling], strategy=name))
    (losses,), (distance,) = panels.curves(folders)
    lines = [tip for tip in tips(losses.drawing) if "held out" not in tip]
    assert lines == ["single dp2 and 3 more", "tensor dp2"]
    assert "One line: single dp2, ddp dp2, zero1 dp2, zero3 dp2." in losses.caption
    assert tips(distance.drawing) == ["ddp dp2 and 2 more", "tensor dp2"]
    assert "Equal within rounding (below 2e-06): ddp dp2, zero1 dp2, zero3 dp2." in distance.caption


@pytest.mark.parametrize("form", ["png", "pdf"])
def test_other_forms_are_made_of_the_same_picture(tmp_path: Path, form: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "rows.csv"
    append(file, run(0, strategy="ddp", tokens_per_s=100.0))
    out = tmp_path / f"p.{form}"
    assert plot.main([str(file), "--out", str(out)]) == 0
    if form == "pdf":
        assert out.read_bytes().startswith(b"%PDF")
        return
    from matplotlib.image import imread

    drawn = ElementTree.fromstring(picture(panels.results([file]), title=""))
    pixels = imread(out)  # (height, width, 4)
    assert pixels.shape[:2] == tuple(raster.SHARP * float(drawn.attrib[side]) for side in ("height", "width"))
    blue = [int(palette.COLOURS["blue"].light[i : i + 2], 16) / 255 for i in (1, 3, 5)]  # that of ddp
    # the dot is a little transparent
    assert (np.abs(pixels[..., :3] - (0.6 * np.array(blue) + 0.4)).max(axis=-1) < 0.03).sum() > 20


def test_without_matplotlib_a_form_that_needs_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(tmp_path / "rows.csv", run(0))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"\.png needs matplotlib: pip install 'paralab\[plot\]', or .* \.svg"):
        plot.main([str(tmp_path / "rows.csv"), "--out", str(tmp_path / "p.png")])
    assert plot.main([str(tmp_path / "rows.csv"), "--out", str(tmp_path / "p.svg")]) == 0


def test_a_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = trained(tmp_path / "a", [3.0, 2.0], strategy="ddp")
    assert plot.main([str(folder), "--out", str(tmp_path / "curves.svg")]) == 0
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    assert "curves.svg" in capsys.readouterr().out


def test_one_run_has_no_panel_below(tmp_path: Path) -> None:
    one = trained(tmp_path / "a", [3.0, 2.0], strategy="ddp")
    ((only,),) = panels.curves([one])
    assert only.title == "gpt2 nano on alice: loss"
    other = trained(tmp_path / "b", [3.0, 2.0], strategy="ddp")
    (other / "config.toml").write_text((other / "config.toml").read_text().replace("alice", "bob"))
    second = trained(tmp_path / "c", [3.0, 2.5], strategy="ddp")
    (first, of_bob), (below, nothing) = panels.curves([one, other, second])
    assert first and of_bob and below and nothing is None
    assert below.title == "Loss: difference from a"


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
    monkeypatch.setattr(plot, "_charts", lambda *_: pytest.fail("drawn first"))
    with pytest.raises(UsageError, match="--out"):
        plot.main([str(tmp_path / "rows.csv"), "--out", str(tmp_path / name)])


def test_files_of_one_name_have_panels_of_other_titles(tmp_path: Path) -> None:
    for folder, number in (("old", 0), ("new", 1)):
        append(tmp_path / folder / "bench.csv", run(number))
    titles = [chart.title for row in panels.results(sorted(tmp_path.glob("*/bench.csv"))) for chart in row if chart]
    assert titles == ["new/bench: gpt2 nano", "old/bench: gpt2 nano"]


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    append(file, run())
    with pytest.raises(UsageError, match="do not fit one picture"):
        plot.main([str(file), str(tmp_path)])
    for words in ([str(tmp_path)], [], ["--layers"], ["--filters"]):
        with pytest.raises(DataError, match="none is not there"):
            plot.main([*words, str(tmp_path / "none")])
    with pytest.raises(DataError, match=r"holds no config\.toml"):
        plot.main([str(tmp_path)])
