"""`paralab anomaly`: which checkpoints it reads, and what it finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paralab import checkpoint, cli
from paralab.commands import anomaly
from paralab.engines import native
from paralab.errors import UsageError
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh


def saved(folder: Path, **options: Any) -> str:
    work = resolve(RunConfig(size="tiny", layout=Layout(), global_batch_size=8, **options))
    checkpoint.save(native.build(work.context(make_mesh(work.layout, torch.device("cpu")))), folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images of three classes: bright above, bright below, and (the third) bright in stripes."""
    generator, file = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "three.npz"
    labels = np.arange(90) % 3
    images = generator.integers(60, size=(90, 28, 28), dtype=np.uint8)
    images[labels == 0, :14] += 150
    images[labels == 1, 14:] += 150
    images[labels == 2, ::2] += 150
    np.savez(file, x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])
    return f"file:{file}"


def test_the_class_that_was_left_out_is_far_away(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, model="vicreg", data=data, held_out_class=2)
    assert cli.main(["anomaly", "--checkpoint", folder, "--k", "3"]) == 0
    first, header, *lines = capsys.readouterr().out.splitlines()
    assert first == "40 training images without class 2; held out: 10 of it, 20 of others"
    assert header.split() == ["features", *"AUROC of the distance to the 3 nearest".split()]
    assert [line[:25].strip() for line in lines] == ["trained, step 0", "before training", "pixels"]
    assert lines[-1].split()[1] == "1.000"
    assert max(map(len, (first, header, *lines))) <= 80
    with pytest.raises(UsageError, match="40 training images and 41 neighbours: use a smaller --k"):
        anomaly.main(["--checkpoint", folder, "--k", "41"])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("vicreg", "was trained on all classes: one of paralab train --model vicreg --held-out-class N is needed"),
        ("resnet", "is a resnet model: one of paralab train --model vicreg is needed"),
    ],
)
def test_another_checkpoint_is_refused(data: str, tmp_path: Path, model: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        anomaly.main(["--checkpoint", saved(tmp_path, model=model, data=data)])
    assert "\n" not in str(caught.value)
