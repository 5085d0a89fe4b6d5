"""Images: built-in digits, IDX files and class folders, in the form that a model takes."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.resnet import ResNetConfig
from parallel.data import assets, open_dataset
from parallel.data.images import fit
from parallel.errors import DataError

CONFIG = ResNetConfig(depths=(1,), widths=(8,), image_size=28, channels=1, n_classes=10)
RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def load(dataset: object, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    batch = dataset.collate(np.arange(n), positions=np.arange(n), seed=0)
    return batch.inputs[0], batch.targets


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).float() / 127.5 - 1.0


def test_mnist_splits() -> None:
    with np.load(assets.FOLDER / "mnist10k.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    train, validation = (open_dataset("mnist", config=CONFIG, split=s) for s in ("train", "validation"))
    assert (train.n_samples, validation.n_samples) == (8_000, 2_000)
    for dataset, start in ((train, 0), (validation, 8_000)):
        x, y = load(dataset, 50)
        torch.testing.assert_close(x[:, 0], to_unit(images[start : start + 50]))
        assert y.dtype == torch.int64 and y.tolist() == labels[start : start + 50].tolist()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_idx_round_trip(tmp_path: Path, zipped: bool, dotted: bool) -> None:
    expected = {}
    for prefix, n in (("train", 12), ("t10k", 5)):
        images = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, n, dtype=np.uint8)
        expected[prefix] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{prefix}-{kind.replace('-idx', '.idx') if dotted else kind}-ubyte"
            content = idx(array)
            (tmp_path / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    for split, prefix in (("train", "train"), ("validation", "t10k")):
        dataset = open_dataset(f"file:{tmp_path}", config=CONFIG, split=split)
        images, labels = expected[prefix]
        assert dataset.n_samples == len(images)
        x, y = load(dataset, len(images))
        torch.testing.assert_close(x[:, 0], to_unit(images))
        assert y.tolist() == labels.tolist()


def damage_truncated(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def damage_empty(folder: Path) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0")


def damage_no_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()


def damage_fewer_labels(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, dtype=np.uint8)))


def damage_zip(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").rename(folder / "train-labels-idx1-ubyte.gz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "not a whole IDX file"),
        (damage_empty, "not a whole IDX file"),
        (damage_no_labels, "no train-labels-idx1-ubyte"),
        (damage_fewer_labels, "4 train images and 3 labels"),
        (damage_zip, "damaged"),
    ],
)
def test_damaged_idx_folders(tmp_path: Path, damage: object, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((4, 28, 28), dtype=np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, dtype=np.uint8)))
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path), config=CONFIG)


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_class_folders_with_splits(tmp_path: Path) -> None:
    config = replace(CONFIG, image_size=8, channels=3, n_classes=2)
    pixels = RNG.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            write_png(tmp_path / ("val" if i == 2 else "train") / name / f"{i}.png", pixels[label, i])
    train, validation = (open_dataset(str(tmp_path), config=config, split=s) for s in ("train", "validation"))
    x, y = load(train, 4)
    assert y.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(x, to_unit(pixels[:, :2].reshape(4, 8, 8, 3)).permute(0, 3, 1, 2))
    x, y = load(validation, 2)
    assert y.tolist() == [0, 1]
    torch.testing.assert_close(x, to_unit(pixels[:, 2]).permute(0, 3, 1, 2))


def test_class_folders_without_splits_hold_out_one_in_ten(tmp_path: Path) -> None:
    config = replace(CONFIG, image_size=8, n_classes=2)
    for i in range(40):
        write_png(tmp_path / ("a" if i < 20 else "b") / f"{i:02}.png", np.full((8, 8), 6 * i, dtype=np.uint8))
    train, validation = (open_dataset(str(tmp_path), config=config, split=s) for s in ("train", "validation"))
    shades = [
        ((load(d, d.n_samples)[0][:, 0, 0, 0] + 1) * 127.5 / 6).round().int().tolist() for d in (train, validation)
    ]
    assert shades[1] == [9, 19, 29, 39]
    assert sorted(shades[0] + shades[1]) == list(range(40))


def test_damaged_image_names_its_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    dataset = open_dataset(str(tmp_path), config=CONFIG)
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        load(dataset, 1)


def test_small_images_are_padded_and_large_ones_scaled() -> None:
    images = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    padded = fit(images, size=32, channels=3)
    assert padded.shape == (2, 3, 32, 32)
    assert padded[..., 2:30, 2:30].min() == 1.0 and padded.sum() == 2 * 3 * (28**2 - (32**2 - 28**2))
    scaled = fit(torch.full((1, 3, 20, 40), 255, dtype=torch.uint8), size=10, channels=3)
    assert scaled.shape == (1, 3, 10, 10)
    black = scaled == -1.0
    assert black[..., :2, :].all() and black[..., -3:, :].all() and not black[..., 2:7, :].any()


def test_gray_equals_pil(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    ours = fit(torch.from_numpy(pixels).permute(2, 0, 1)[None], size=8, channels=1)[0, 0]
    pil = np.array(Image.fromarray(pixels).convert("L"))
    torch.testing.assert_close(ours, to_unit(pil), atol=1.01 / 127.5, rtol=0.0)  # PIL rounds to whole levels


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mnits", CONFIG, "did you mean mnist"),
        ("alice", CONFIG, "is text, this model eats images: use mnist"),
        ("mnist", replace(CONFIG, n_classes=9), "mnist has 10 classes"),
    ],
)
def test_bad_requests(name: str, config: ResNetConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, config=config)


def test_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one subfolder of images a class"):
        open_dataset(str(tmp_path), config=CONFIG)


def test_train_folder_without_validation(tmp_path: Path) -> None:
    write_png(tmp_path / "train" / "a" / "0.png", np.zeros((8, 8), dtype=np.uint8))
    with pytest.raises(DataError, match="none for validation"):
        open_dataset(str(tmp_path), config=CONFIG, split="validation")
