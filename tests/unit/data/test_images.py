"""Images: built-in digits, IDX files and class folders, in the form that a model takes."""

import gzip
import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from paralab.data import assets, count_classes, open_dataset
from paralab.data.dataset import Dataset
from paralab.data.pixels import decode, fit
from paralab.errors import DataError
from paralab.models.resnet import ResNetConfig


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALAB_CACHE", str(tmp_path_factory.mktemp("cache")))


CONFIG = ResNetConfig(depths=(1,), widths=(8,), image_size=28, channels=1, n_classes=10)
RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def load(dataset: Dataset, n: int) -> tuple[torch.Tensor, torch.Tensor]:
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
            path = tmp_path / (f"{name}.gz" if zipped and not dotted else name)  # packed files without their ending too
            path.write_bytes(gzip.compress(content) if zipped else content)
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
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes())[:-9])


def damage_too_high(folder: Path) -> None:
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for path in folder.glob("train-*"):
        path.rename(folder / "MNIST" / "raw" / path.name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncated, "not a whole IDX file"),
        (damage_empty, "not a whole IDX file"),
        (damage_no_labels, "no train-labels-idx1-ubyte"),
        (damage_fewer_labels, "4 images and train-labels-idx1-ubyte 3 labels"),
        (damage_zip, "damaged"),
        (damage_too_high, "has IDX files in MNIST/raw: use --data file:.*/MNIST/raw$"),
    ],
)
def test_damaged_idx_folders(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((4, 28, 28), dtype=np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(4, dtype=np.uint8)))
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
    write_tree(tmp_path, {"a": 1, "b": 1})
    whole = (tmp_path / "a" / "0.png").read_bytes()
    broken = tmp_path / "b" / "0.png"
    bomb = whole[:16] + struct.pack(">II", 1 << 20, 1 << 20) + whole[24:29]
    for content, message in (
        (b"no image", "is no image that can be read"),
        (b"", "is empty"),
        (whole[:-30], "cannot be decoded"),
        (bomb + struct.pack(">I", zlib.crc32(bomb[12:])) + whole[33:], "cannot be decoded .*pixels"),
        (with_text(whole, size=2 << 20), "cannot be decoded .*too large"),
    ):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=rf"b/0\.png {message}"):
            open_dataset(str(tmp_path), config=CONFIG)
    broken.unlink()
    broken.symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"b/0\.png cannot be read \(a link to a file that is not there"):
        open_dataset(str(tmp_path), config=CONFIG)


def with_text(png: bytes, *, size: int) -> bytes:
    """Put a compressed text of so many bytes behind the header of a PNG."""
    chunk = b"zTXtnote\0\0" + zlib.compress(bytes(size))
    return png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def write_tree(root: Path, counts: dict[str, int]) -> Path:
    """Write so many grey images into each folder, each of another shade."""
    shade = 0
    for name, n in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            shade += 1
            write_png(root / name / f"{i}.png", np.full((8, 8), shade % 256, dtype=np.uint8))
    return root


def labels(folder: Path, split: str) -> list[int]:
    return load_all(folder, split)[1].tolist()


def load_all(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    dataset = open_dataset(str(folder), config=CONFIG, split=split)
    return load(dataset, dataset.n_samples)


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"train/a": 2, "train/b": 1, "val/b": 1},
         "2 classes (a, b); train 3 images for training, val 1 image for validation"),
        ({"TRAINING/a": 2, "TRAINING/b": 1, "Testing/b": 1},
         "2 classes (a, b); TRAINING 3 images for training, "
         "Testing 1 image for validation, as no other split is there for it"),
        ({"train/a": 1, "train/b": 1, "valid/a": 2, "test/b": 3},
         "2 classes (a, b); train 2 images for training, valid 2 images for validation, test 3 images not used"),
        ({"Train/a": 1, "Train/b": 1, "DEV/b": 1, "test": 4, "thumbs": 2},
         "2 classes (a, b); Train 2 images for training, DEV 1 image for validation; "
         "test 4 images not used: it holds no split with classes; "
         "thumbs 2 images not used: it holds no split with classes"),
        ({"train/a": 1, "train/c": 1, "val/a": 1, "val/b": 1, "test/c": 1},
         "3 classes (a, b, c); train 2 images for training, val 2 images for validation, test 1 image not used; "
         "no image of b for training"),
        ({"train/a": 1, "train/b": 1, "train": 1, "val/a": 1},
         "2 classes (a, b); train 2 images for training, val 1 image for validation; "
         "1 images outside of class folders not used"),
        ({"bus": 8, "car": 8, "train": 8},
         "3 classes (bus, car, train); 22 images for training, 2 (one in 10) for validation"),
        ({"data": 11, "test": 9}, "2 classes (data, test); 18 images for training, 2 (one in 10) for validation"),
        ({"a": 5, "b": 5, ".c": 9, "__MACOSX/a": 9, "empty": 0, "b/._x": 3},
         "2 classes (a, b); 9 images for training, 1 (one in 10) for validation"),
    ],
)  # fmt: skip
def test_what_is_found_in_a_folder(tmp_path: Path, counts: dict[str, int], found: str) -> None:
    for split in ("train", "validation"):
        assert open_dataset(str(write_tree(tmp_path, counts)), config=CONFIG, split=split).found == found


def test_classes_are_numbered_over_all_splits(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train/.ipynb_checkpoints": 0, "train/a": 1, "train/b": 1, "train/c": 2, "valid/a": 0,
                          "valid/c": 1, "valid/b": 1, "test/a": 1})  # fmt: skip
    assert labels(tmp_path, "train") == [0, 1, 2, 2]
    assert labels(tmp_path, "validation") == [1, 2]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"flowers/a": 3, "flowers/b": 3},
         "in {root}, flowers holds no images itself.*use --data file:{root}/flowers, or"),
        ({"x/flowers/train/a": 3, "x/flowers/train/b": 3}, "use --data file:{root}/x/flowers, or"),
        ({"one/a": 1, "one/b": 1, "two/a": 1, "two/b": 1}, "use --data file:{root}/one or --data file:{root}/two, or"),
        ({"train": 4, "test": 4}, "{root} has test and train, which hold images and no folder for each class"),
        ({"train/a": 1, "train/b": 1, "bus": 1},
         "{root}/train holds folders as a split does .a and b. and is beside bus"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "dev/a": 1}, "dev and val, which are both its validation split"),
        ({"valid/a": 1, "valid/b": 1}, "no split for training, only valid"),
        ({"a": 1, "A": 1}, "'A' and 'a', which differ in case or blanks alone"),
        ({"a": 1, "a ": 1}, "'a' and 'a ', which differ in case or blanks alone"),
        ({"a": 12}, "has one class, and nothing to tell apart"),
        ({"train/images": 1, "valid/images": 1}, "has one class, and nothing to tell apart"),
        ({"": 3}, "{root} has 3 images and no folder of any"),
        ({"a": 0, "b": 0}, "{root} has no images: IDX files are needed"),
    ],
)  # fmt: skip
def test_folders_of_another_form_are_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    write_tree(tmp_path, counts)
    with pytest.raises(DataError, match=message.format(root=tmp_path)):
        open_dataset(str(tmp_path), config=CONFIG)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_every_form_of_a_picture_has_the_pixels_of_the_plain_one(tmp_path: Path) -> None:
    grey = RNG.integers(0, 256, (8, 6), dtype=np.uint8)
    colour = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    plain, sixteen = Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    rgb = Image.fromarray(colour)
    opaque = Image.fromarray(np.dstack([colour, np.full((8, 6), 255, dtype=np.uint8)]))
    want_grey, want_colour = (
        torch.from_numpy(x.astype(np.float32)) / 255 for x in (grey[None], colour.transpose(2, 0, 1))
    )
    forms = {
        "grey.PNG": (plain, want_grey),
        "16.png": (sixteen, want_grey),
        "16.tif": (sixteen, want_grey),
        "16.pgm": (sixteen, want_grey),
        "LA.png": (plain.convert("LA"), want_grey.expand(3, -1, -1)),
        "rgb.bmp": (rgb, want_colour),
        "rgba.webp": (opaque, want_colour),
        "palette.gif": (plain, want_grey.expand(3, -1, -1)),
        "one.png": (plain.convert("1"), torch.from_numpy(np.array(plain.convert("1"))[None].astype(np.float32))),
        "cmyk.tif": (rgb.convert("CMYK"), want_colour),
    }
    for name, (image, want) in forms.items():
        options = {"lossless": True} if name.endswith("webp") else {}
        path = save(tmp_path / name, image, **options)
        torch.testing.assert_close(decode(path.read_bytes(), path=path), want, atol=1e-6, rtol=0, msg=name)
    path = save(tmp_path / "turned.png", plain.transpose(Image.Transpose.ROTATE_90), exif=turned)
    torch.testing.assert_close(decode(path.read_bytes(), path=path), want_grey)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    ink = np.zeros((4, 4), dtype=np.uint8)
    ink[1, 2] = 255
    want = torch.from_numpy(1 - ink.astype(np.float32) / 255)
    black = Image.new("L", (4, 4))
    black.putalpha(Image.fromarray(ink))
    palette = Image.fromarray(ink // 255, "P")
    palette.putpalette([200, 0, 0, 0, 0, 0])
    forms = {"LA": (black, {}), "RGBA": (black.convert("RGBA"), {}), "P": (palette, {"transparency": 0}),
             "L": (Image.fromarray(255 - ink), {"transparency": 255})}  # fmt: skip
    for name, (image, options) in forms.items():
        path = save(tmp_path / f"{name}.png", image, **options)
        for plane in decode(path.read_bytes(), path=path):
            torch.testing.assert_close(plane, want, msg=name)


@pytest.mark.parametrize(
    ("kind", "said"), [(np.float32, "floating-point numbers"), (np.int32, "signed or 32-bit integers")]
)
def test_numbers_of_unknown_range_are_refused(tmp_path: Path, kind: type, said: str) -> None:
    write_tree(tmp_path, {"a": 1, "b": 1})
    save(tmp_path / "a" / "x.tif", Image.fromarray(np.ones((8, 8), dtype=kind)))
    with pytest.raises(DataError, match=rf"a/x\.tif holds {said}, whose range is not known: save it with 8 or 16 bits"):
        open_dataset(str(tmp_path), config=CONFIG)


def test_a_set_is_known_by_its_contents(tmp_path: Path) -> None:
    counts = {"train/a": 2, "train/b": 1, "val/a": 1, "test/b": 1}
    first = write_tree(tmp_path / "first", counts)

    def identity(folder: Path, split: str = "train") -> str:
        return open_dataset(str(folder), config=CONFIG, split=split).sha256

    shutil.copytree(first, tmp_path / "elsewhere" / "second")
    known = identity(first)
    assert identity(tmp_path / "elsewhere" / "second") == known == identity(first, "validation")
    (first / "val").rename(first / "Validation")
    (first / "test" / "b" / "0.png").unlink()  # is not read
    assert identity(first) == known
    picture = first / "train" / "a" / "1.png"
    times, size = picture.stat(), picture.stat().st_size
    write_png(picture, np.full((8, 8), 99, dtype=np.uint8))
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert picture.stat().st_size == size and identity(first) != known


@pytest.mark.parametrize(
    "stem", ["{}-images.idx3-ubyte", "emnist-letters-{}-images-idx3-ubyte", "{}-images-idx3-ubyte/{}-images-idx3-ubyte"]
)
def test_idx_files_under_their_other_names(tmp_path: Path, stem: str) -> None:
    for split, n in (("train", 12), ("test", 5)):
        for kind, array in (
            ("images", np.zeros((n, 4, 4), dtype=np.uint8)),
            ("labels", np.arange(1, n + 1, dtype=np.uint8)),
        ):
            path = tmp_path / stem.replace("images", kind).replace(
                "idx3", "idx3" if kind == "images" else "idx1"
            ).format(split, split)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(idx(array))
    dataset = open_dataset(str(tmp_path), config=replace(CONFIG, n_classes=13), split="validation")
    assert dataset.n_samples == 5 and count_classes(str(tmp_path)) == 13
    found = "13 classes (0 to 12, no image of 0); train 12 images for training, test 5 images for validation"
    assert dataset.found == found
    (tmp_path / "emnist-digits-train-images-idx3-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="IDX files of 2 sets"):
        count_classes(str(tmp_path))


@pytest.mark.parametrize("shape", [(0, 28, 28), (3, 0, 28)])
def test_idx_files_without_pictures(tmp_path: Path, shape: tuple[int, ...]) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros(shape, dtype=np.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(3, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte holds .*sizes"):
        open_dataset(str(tmp_path), config=CONFIG)


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
        ("alice", CONFIG, "is text, this model consumes images: use mnist"),
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
    with pytest.raises(
        DataError, match=r"no split for validation, only train: add a folder valid, or use --data file:.*/train"
    ):
        open_dataset(str(tmp_path), config=CONFIG, split="validation")


def test_the_line_about_a_folder_can_be_printed(tmp_path: Path) -> None:
    names = [b"a\x1b[2J\n", b"caf\xe9", "café".encode()]
    for name in names:
        write_tree(tmp_path, {os.fsdecode(name): 4})
    found = open_dataset(str(tmp_path), config=CONFIG).found
    assert "(a\\x1b[2J\\x0a, café, caf\\xdce9)" in found
    assert found.encode() and "\n" not in found


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("images", "labels"), "4 classes (0 to 3); 18 images for training, 2 (one in 10) for validation"),
        (("x_train", "y_train", "x_test", "y_test"),
         "4 classes (0 to 3); train 20 images for training, test 20 images for validation"),
        (("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),
         "4 classes (0 to 3); train 20 images for training, validation 20 images for validation, "
         "test 20 images not used"),
    ],
)  # fmt: skip
def test_npz_files(tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    images = RNG.integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8)[:, None] % 4
    arrays: dict[str, Any] = {name: images if "x_" in name or "images" in name else labels for name in names}
    np.savez(tmp_path / "set.npz", **arrays)
    config = replace(CONFIG, channels=3)
    dataset = open_dataset(f"file:{tmp_path / 'set.npz'}", config=config)
    assert dataset.found == found
    x, y = load(dataset, 5)
    torch.testing.assert_close(x, to_unit(images[:5]).permute(0, 3, 1, 2))
    assert y.tolist() == [0, 1, 2, 3, 0]
    assert open_dataset(f"file:{tmp_path / 'set.npz'}", config=config, split="validation").n_samples in (2, 20)


def test_labels_that_leave_numbers_out_are_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((20, 28, 28), np.uint8), labels=np.array([0, 2, 5, 7] * 5))
    found = open_dataset(f"file:{tmp_path / 'set.npz'}", config=CONFIG).found
    assert found.startswith("8 classes (0 to 7, no image of 1, 3, 4, 6); 18 images for training")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 8, 8)), "labels": np.arange(4)}, "type float64: save them as uint8"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(3)}, r"4 images and labels of shape \(3,\) and"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.arange(0)}, "holds no images"),
        ({"images": np.array([{}]), "labels": np.arange(1)}, "not a readable .npz file"),
        (
            {"images": np.zeros((3, 4, 4), np.uint8), "labels": np.eye(3)},
            r"shape \(3, 3\) and type float64: save them as",
        ),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([-1, 0])}, "labels from -1 to 0: they are the"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 10**9])},
            "labels from 0 to 1000000000: they",
        ),
        ({"samples": np.zeros(3)}, "holds samples: arrays images and labels are needed"),
    ],
)
def test_npz_files_of_another_form(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        open_dataset(str(path), config=CONFIG)
    bare = io.BytesIO()
    np.save(bare, np.zeros(3))  # a .npy under the name of a .npz
    for content in (path.read_bytes()[:50], bare.getvalue(), b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a readable \.npz file"):
            open_dataset(str(path), config=CONFIG)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_damaged_npz_files(tmp_path: Path, method: int) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros((4, 8, 8), np.uint8))
    # a bracket that is never closed; two texts for one; a type that numpy cannot read
    for right, wrong in ((b"'descr'", b"('descr'"), (b"'descr'", b"'de' 'scr' 1"), (b"'|u1'", b"'(,)u1'")):
        path = tmp_path / "set.npz"
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("images.npy", array.getvalue().replace(right, wrong))
        whole = path.read_bytes()
        at = whole.index(b"images.npy") + len("images.npy")
        for content in (whole, whole[: at + 12] + b"\xff" * 4 + whole[at + 16 :]):  # in what is compressed
            path.write_bytes(content)
            with pytest.raises(DataError, match=r"not a readable \.npz file"):
                open_dataset(str(path), config=CONFIG)
