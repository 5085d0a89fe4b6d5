"""The picture of how layers evolve, from the log of a real run."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from paralab.benchmarks.report import layers, plot
from paralab.benchmarks.report.results_page import render
from paralab.commands import train
from paralab.errors import ConfigError, DataError, UsageError
from paralab.pages import palette
from paralab.pages.page import Chart
from paralab.records.layers import by_layer
from paralab.records.log import read_layers

QUICK = "--model gpt2 --size tiny --global-batch-size 8 --threads 1 --eval-samples 4 --steps 5".split()


def cells(chart: Chart) -> dict[str, str]:
    """Return the colour of each cell, by what is said of it."""
    root = ElementTree.fromstring(str(chart.drawing))
    return {cell[0].text: cell.attrib["fill"] for cell in root if cell.tag == "rect" and len(cell)}


def test_a_run_leaves_what_the_picture_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, picture = tmp_path / "run", tmp_path / "layers.svg"
    assert train.main([*QUICK, "--layer-stats-every", "2", "--log-every", "3", "--out", str(folder)]) == 0
    found = read_layers(folder / "log" / "rank0.jsonl")
    assert sorted({x.step for x in found}) == [0, 2, 4]
    assert len(found) == 3 * len({x.name for x in found})
    steps = by_layer(found)
    weight, gradient, update = steps[2]["blocks.3"]
    charts = layers.heatmaps(found, name="run")
    for chart, value in zip(charts, (weight, gradient, update / weight), strict=True):
        shown = cells(chart)
        assert len(shown) == 3 * len(steps[0]) and f"blocks.3, step 2: {value:.2g}" in shown
    largest = max(((rms[1], name, step) for step, them in steps.items() for name, rms in them.items()))
    number, name, step = largest
    assert cells(charts[1])[f"{name}, step {step}: {number:.2g}"] == palette.MAGNITUDES[-1]
    assert plot.main(["--layers", str(folder), "--out", str(picture)]) == 0
    assert [title for title in layers.PANELS if f">run: {title}</text>" in picture.read_text()] == list(layers.PANELS)
    page = render([folder / "runs.csv"])
    assert page.count('<section id="layers">') == 1 and f"blocks.3, step 2: {weight:.2g}" in page

    with pytest.raises(UsageError, match="give the folder of one"):
        plot.main(["--layers", str(folder), str(folder), "--out", str(picture)])
    assert train.main([*QUICK, "--out", str(tmp_path / "without")]) == 0
    with pytest.raises(DataError, match="add --layer-stats-every"):
        plot.main(["--layers", str(tmp_path / "without"), "--out", str(picture)])
    with pytest.raises(ConfigError, match="which keeps gradients and updates to itself"):
        train.main([*QUICK, "--layer-stats-every", "2", "--engine", "deepspeed", "--out", str(tmp_path / "other")])
