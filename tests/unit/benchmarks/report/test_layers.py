"""The picture of how layers evolve, from the log of a real run."""

import math
from pathlib import Path

import pytest

from paralab.benchmarks.report import layers, plot
from paralab.commands import train
from paralab.errors import ConfigError, DataError, UsageError
from paralab.records.log import LayerRecord, read_layers

QUICK = "--model gpt2 --size tiny --global-batch-size 8 --threads 1 --eval-samples 4 --steps 5".split()


def record(name: str, numel: int, rms: float) -> LayerRecord:
    return LayerRecord(step=4, name=name, numel=numel, weight_rms=rms, gradient_rms=2 * rms, update_rms=rms / 10)


def test_a_layer_is_a_block_or_a_module_and_its_parameters_count_by_their_numbers() -> None:
    names = ("blocks.12.attn.qkv.weight", "embed.tokens.weight", "layers.1.0.conv.weight", "scale")
    assert [layers.layer_of(name) for name in names] == ["blocks.12", "embed.tokens", "layers.1", "scale"]
    rows = [record("blocks.0.a.weight", 30, 2.0), record("blocks.0.b", 10, 0.0), record("head", 5, 1.0)]
    found = layers.by_layer(rows)
    assert list(found) == [4] and list(found[4]) == ["blocks.0", "head"]
    assert found[4]["blocks.0"] == pytest.approx((math.sqrt(3.0), 2 * math.sqrt(3.0), math.sqrt(0.03)))


def test_a_run_leaves_what_the_picture_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, picture = tmp_path / "run", tmp_path / "layers.svg"
    assert train.main([*QUICK, "--layer-stats-every", "2", "--log-every", "3", "--out", str(folder)]) == 0
    found = read_layers(folder / "log" / "rank0.jsonl")
    assert sorted({x.step for x in found}) == [0, 2, 4]
    assert len(found) == 3 * len({x.name for x in found})
    figure = layers.heatmaps(folder)
    tables = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    steps = layers.by_layer(found)
    assert [table.shape for table in tables] == [(len(steps[0]), 3)] * 3
    weight, gradient, update = steps[2]["blocks.3"]
    row = list(steps[2]).index("blocks.3")
    assert [10 ** table[row][1] for table in tables] == pytest.approx([weight, gradient, update / weight])
    assert plot.main(["--layers", str(folder), "--out", str(picture)]) == 0
    text = picture.read_text()
    assert text.startswith("<?xml") and all(f"<!-- {title} -->" in text for title in layers.PANELS)

    with pytest.raises(UsageError, match="give the folder of one"):
        plot.main(["--layers", str(folder), str(folder), "--out", str(picture)])
    assert train.main([*QUICK, "--out", str(tmp_path / "without")]) == 0
    with pytest.raises(DataError, match="add --layer-stats-every"):
        plot.main(["--layers", str(tmp_path / "without"), "--out", str(picture)])
    with pytest.raises(ConfigError, match="which keeps gradients and updates to itself"):
        train.main([*QUICK, "--layer-stats-every", "2", "--engine", "deepspeed", "--out", str(tmp_path / "other")])
