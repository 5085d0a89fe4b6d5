"""`paralab probe`: which encoders it reads, and what it says of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from paralab import checkpoint, cli
from paralab.commands import probe
from paralab.engines import native
from paralab.errors import DataError, UsageError
from paralab.inference.encoders import encode, samples_of, untrained
from paralab.inference.restore import restore
from paralab.layout import Layout
from paralab.models.resnet import ResNet
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh

SEED = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits that are told apart by where they are bright: 60 for training, 20 held out, 2 classes."""
    generator, file = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "halves.npz"
    labels = np.arange(80) % 2
    images = generator.integers(60, size=(80, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:14] += np.uint8(150 * label)
    np.savez(file, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return f"file:{file}"


@pytest.fixture(scope="module")
def runs(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after two steps, in folders named by their models."""
    folder = tmp_path_factory.mktemp("runs")
    for model, given in (("vicreg", data), ("resnet", data), ("gpt2", None)):
        run = RunConfig(model=model, size="tiny", layout=Layout(), global_batch_size=8, data=given, seed=SEED)
        work = resolve(run)
        mesh = make_mesh(work.layout, torch.device("cpu"))
        engine, batches = native.build(work.context(mesh)), training_batches(work, mesh)
        for _ in range(2):
            engine.step(next(batches))
        checkpoint.save(engine, folder / model)
    return folder


def test_each_encoder_has_a_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", str(runs / "vicreg"), "--supervised", str(runs / "resnet"), "--k", "3"]
    assert cli.main(["probe", *words]) == 0
    first, header, *lines = capsys.readouterr().out.splitlines()
    assert first == "60 labelled images; right of 20 held-out ones, with 95% intervals:"
    assert header.split("  ")[0] == "encoder" and header.endswith("3 nearest neighbours")
    assert [line[:25].strip() for line in lines] == ["trained, step 2", "before training", "resnet tiny, with labels"]
    assert all(line.count("100.00% (83.9% to 100.0%)") == 2 for line in lines), "whose halves are bright is easy"
    assert max(map(len, (first, header, *lines))) <= 80
    assert cli.main(["probe", *words[:2], "--labels", "6", "--k", "3"]) == 0
    assert "6 labelled images" in capsys.readouterr().out


def test_before_training_is_what_training_began_with(runs: Path) -> None:
    trained = restore(runs / "vicreg")
    work = resolve(replace(trained.work.run, seed=SEED))
    engine = native.build(work.context(make_mesh(work.layout, torch.device("cpu"))))
    found = untrained(trained)
    first = dict(engine.parameters())
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, first[name])
    assert not found.training
    moved = [not torch.equal(p, first[name]) for name, p in trained.model.named_parameters()]
    assert all(moved)
    means = [buffer for name, buffer in found.named_buffers() if name == "stem.norm.running_mean"]
    assert means[0].abs().max() > 0.01, "the norms have seen images"


def test_features_do_not_depend_on_what_is_encoded_beside_them(runs: Path) -> None:
    trained = restore(runs / "vicreg")
    assert isinstance(trained.model, ResNet)
    some = encode(trained.model, samples_of(trained, "train"), most=5)
    every = encode(trained.model, samples_of(trained, "train"))
    torch.testing.assert_close(some.x, every.x[:5], rtol=1e-5, atol=1e-6)
    assert torch.equal(some.labels, every.labels[:5]) and len(every.labels) == 60 and some.x.dtype == torch.float64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--checkpoint", "resnet"],
            r"--checkpoint .* is a resnet model: one of paralab train --model vicreg is needed",
        ),
        (["--checkpoint", "gpt2"], "is a gpt2 model: one of paralab train --model vicreg is needed"),
        (
            ["--checkpoint", "vicreg", "--supervised", "vicreg"],
            "is a vicreg model: one of paralab train --model resnet",
        ),
        (["--checkpoint", "vicreg", "--labels", "3", "--k", "4"], "3 labelled images and 4 neighbours: use a smaller"),
        (["--checkpoint", "vicreg", "--labels", "61"], "--labels 61 with 60 training images: use 60 or fewer"),
        (
            ["--checkpoint", "vicreg", "--labels", "1", "--k", "1"],
            "'1' is not allowed: use a whole number of at least 2",
        ),
        (["--checkpoint", "vicreg", "--k", "61"], "60 labelled images and 61 neighbours"),
        (["--checkpoint", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_line(
    runs: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paralab.inference.encoders.untrained", None)  # before anything is computed
    at = [str(runs / word) if word in ("vicreg", "resnet", "gpt2", "nowhere") else word for word in words]
    with pytest.raises(UsageError, match=said) as caught:
        probe.main(at)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_other_images_does_not_stand_beside(runs: Path, tmp_path: Path) -> None:
    work = resolve(RunConfig(model="resnet", size="tiny", layout=Layout(), global_batch_size=8))
    checkpoint.save(native.build(work.context(make_mesh(work.layout, torch.device("cpu")))), tmp_path)
    with pytest.raises(UsageError, match="was trained on other images than"):
        probe.main(["--checkpoint", str(runs / "vicreg"), "--supervised", str(tmp_path)])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), r"step-0: blocks\.0\S+ is not finite, its training diverged: use an earlier checkpoint$"),
        (1e38, r"the features of 60 of 60 images are not finite, .* diverged: use an earlier checkpoint$"),
    ],
)
def test_an_encoder_that_diverged_has_no_accuracy(runs: Path, tmp_path: Path, value: float, said: str) -> None:
    work = restore(runs / "vicreg").work
    engine = native.build(work.context(make_mesh(work.layout, torch.device("cpu"))))
    with torch.no_grad():
        for name, parameter in engine.parameters():
            parameter.fill_(value if name.startswith("blocks") else 1.0)
    checkpoint.save(engine, tmp_path)
    with pytest.raises(DataError, match=said):
        probe.main(["--checkpoint", str(tmp_path), "--k", "3"])
