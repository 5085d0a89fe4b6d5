"""Filters and feature maps of a real run, compared with what the network holds and computes."""

import io
import shutil
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from paralab.benchmarks.report import filters, plot
from paralab.commands import train
from paralab.console.phases import hidden
from paralab.errors import ConfigError, DataError, UsageError
from paralab.inference.encoders import samples_of
from paralab.inference.feature_maps import across_training, before_training
from paralab.inference.restore import restore
from paralab.models.resnet import ResNet
from paralab.pages.page import Chart
from paralab.pages.tiles import coloured

QUICK = "--model resnet --size tiny --residual off --global-batch-size 8 --threads 1 --eval-samples 4".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = [*QUICK, "--steps", "2", "--save-every", "1", "--learning-rate", "0.01", "--out", str(folder)]
    assert train.main(words) == 0
    return folder


def as_resnet(model: nn.Module) -> ResNet:
    assert isinstance(model, ResNet)
    return model


def rows(chart: Chart) -> list[list[np.ndarray]]:
    """Return the pixels (rows, columns, 3) of the tiles of a chart, row by row."""
    found: dict[str, list[np.ndarray]] = {}
    for mark in ElementTree.fromstring(str(chart.drawing)):
        if mark.tag == "image":
            content = io.BytesIO(b64decode(mark.attrib["href"].partition(",")[2]))
            found.setdefault(mark.attrib["y"], []).append(np.asarray(Image.open(content)))
    return list(found.values())


def test_filters_and_maps_are_those_of_the_network(run: Path) -> None:
    ((first, stem), (stage1, stage2)) = filters.charts([run], number=3)
    one, two = restore(run / "step-1"), restore(run / "step-2")
    moments = [before_training(one), as_resnet(one.model), as_resnet(two.model)]
    weights = [model.stem.get_parameter("conv.weight").detach().numpy() for model in moments]
    for got, want in zip(rows(first), weights, strict=True):
        expected = [coloured(one[0] / np.abs(want).max(), signed=True) for one in want]
        np.testing.assert_array_equal(np.stack(got), np.stack(expected))
    moved = [np.linalg.norm(w - weights[0]) / np.linalg.norm(weights[0]) for w in weights[1:]]
    assert moved[1] > 0.01 and f"moved by {moved[0]:.0%}, {moved[1]:.0%} of their norm" in first.caption

    image = samples_of(two, "validation").load(np.array([3]))[0]
    seen: list[torch.Tensor] = []
    model = moments[2]
    for module in (model.stem, model.blocks["3"], model.blocks["7"]):
        module.register_forward_hook(lambda module, given, made: seen.append(made[0].detach()))
    with torch.no_grad():
        model(image)
    shades = (image[0, 0].numpy() + 1) / 2
    np.testing.assert_array_equal(rows(stem)[0][0], coloured(shades / shades.max(), signed=False))
    for chart, maps in zip((stem, stage1, stage2), seen, strict=True):
        expected = [coloured(one / maps.max().item(), signed=False) for one in maps[:16].numpy()]
        np.testing.assert_array_equal(np.stack(rows(chart)[-1]), np.stack(expected))


def test_a_run_from_other_weights_has_no_moment_before_training(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    config = folder / "config.toml"
    config.write_text('init_from = "elsewhere"\n' + config.read_text())
    labels = [[one.label for one in across_training(x, most=3, number=0, phases=hidden())[0]] for x in (run, folder)]
    assert labels == [["untrained", "step 1", "step 2"], ["step 1", "step 2"]]


def test_a_picture_of_it_has_its_pixels(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    out = tmp_path / "filters.png"
    assert plot.main(["--filters", str(run), "--out", str(out)]) == 0
    drawn = (imread(out)[..., :3] * 255).round().astype(int)
    darkest = np.array([0x1C, 0x24, 0x40])  # the largest number of a row
    assert (np.abs(drawn - darkest).max(axis=-1) <= 2).sum() > 20


def test_what_has_no_filters_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the folder of one"):
        filters.charts([run, run])
    with pytest.raises(ConfigError, match="--image 2000 of 2,000 held-out images: use 0 to 1999"):
        filters.charts([run], number=2000)
    with pytest.raises(UsageError, match="--image 1 says which feature maps --filters draws: add --filters"):
        plot.main([str(run), "--image", "1", "--out", str(tmp_path / "x.svg")])
    with pytest.raises(DataError, match="has no checkpoint: give the folder of a training"):
        filters.charts([tmp_path])
    words = ["--model", "gpt2", "--size", "tiny", "--global-batch-size", "8", "--eval-samples", "4", "--steps", "1"]
    assert train.main([*words, "--out", str(tmp_path / "text")]) == 0
    with pytest.raises(ConfigError, match="trains gpt2: give a run of --model resnet or vicreg"):
        filters.charts([tmp_path / "text"])
