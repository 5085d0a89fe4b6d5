"""Images: the built-in digits, IDX files (MNIST, Fashion-MNIST), and folders with one subfolder a class.

Whatever the source, a model is given (rows, channels, size, size) float32 in [-1, 1]: mean 0.5 and standard
deviation 0.5 of pixels in [0, 1], the same for every set. An image that is too large is scaled down until its
longer side fits; one that is too small is padded with black on all sides, never scaled up.
"""

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.data.assets import SHA256, read_asset
from parallel.data.dataset import USED_FOR, Samples
from parallel.data.files import path_of
from parallel.errors import DataError

MNIST_TRAIN = 8_000
HELD_OUT_IMAGE = 10  # of a folder without splits: one in ten
MEAN = STD = 0.5
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's convert("L")
_IDX_PREFIX = {"train": "train", "validation": "t10k"}
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test")}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def fit(images: Tensor, *, size: int, channels: int) -> Tensor:
    """Make (rows, any channels, any height, any width) uint8 into (rows, channels, size, size) float32 in [-1, 1]."""
    x = _to_channels(images.float() / 255.0, channels)
    height, width = x.shape[2:]
    longer = max(height, width)
    if longer > size:
        height, width = (max(1, round(side * size / longer)) for side in (height, width))
        x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    top, left = (size - height) // 2, (size - width) // 2
    x = F.pad(x, (left, size - width - left, top, size - height - top))
    return (x - MEAN) / STD


def _to_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    if channels == 1:
        return torch.einsum("nchw,c->nhw", x, x.new_tensor(_LUMA))[:, None]
    raise DataError(f"images have {x.shape[1]} channels, the model takes {channels}: use channels=1 or 3")


class ArrayImages:
    """Images held in memory as uint8 (n, height, width)."""

    def __init__(
        self, name: str, *, split: str, sha256: str, images: np.ndarray, labels: np.ndarray, config: Any
    ) -> None:
        self.name, self.sha256, self.n_samples = name, sha256, len(images)
        self.found = f"{name}, {len(images):,} pictures for {USED_FOR[split]}"
        self.images, self.labels = images, labels.astype(np.int64)
        self.size, self.channels = config.image_size, config.channels

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        pixels, labels = self.stored(indices)
        return self.cast(pixels), labels

    def stored(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the images at `indices` as uint8 (rows, 1, height, width) and their labels (rows,) int64."""
        return torch.from_numpy(self.images[indices])[:, None], torch.from_numpy(self.labels[indices])

    def cast(self, pixels: Tensor) -> Tensor:
        """Return stored images as a model takes them, on the device they are on."""
        return fit(pixels, size=self.size, channels=self.channels)


class FolderImages:
    """Image files, decoded when asked for. sha256 is that of the listing: relative path and size of each file."""

    def __init__(
        self, name: str, *, split: str, root: Path, files: Sequence[Path], labels: Sequence[int], config: Any
    ) -> None:
        listing = "".join(f"{path.relative_to(root)}\t{path.stat().st_size}\n" for path in files)
        self.name, self.n_samples = name, len(files)
        self.found = f"{name}, {len(files):,} pictures for {USED_FOR[split]}"
        self.sha256 = hashlib.sha256(listing.encode()).hexdigest()
        self.files, self.labels = list(files), np.array(labels, dtype=np.int64)
        self.size, self.channels = config.image_size, config.channels

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        images = torch.stack([self._decode(self.files[i]) for i in indices])
        return images, torch.from_numpy(self.labels[indices])

    def _decode(self, path: Path) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("L" if self.channels == 1 else "RGB"))
        except OSError as error:
            raise DataError(f"image {path} cannot be decoded ({error}): repair or remove it") from error
        planes = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
        return fit(planes[None], size=self.size, channels=self.channels)[0]


def open_images(name: str, *, config: Any, split: str) -> Samples:
    """Open `mnist`, or a folder: IDX files under their usual names (.gz too), or one subfolder a class.

    config: a model config with `image_size` and `channels`, and `n_classes` which must cover the labels.
    Raises: DataError when the images cannot be read or do not fit the model.
    """
    samples = _open(name, config=config, split=split)
    n_classes = int(samples.labels.max()) + 1
    if n_classes > config.n_classes:
        raise DataError(f"{name} has {n_classes} classes, the model n_classes={config.n_classes}: set {n_classes}")
    return samples


def _open(name: str, *, config: Any, split: str) -> ArrayImages | FolderImages:
    if name == "mnist":
        return _mnist(config=config, split=split)
    root = path_of(name)
    if root is None or not root.is_dir():
        raise DataError(f"data {name!r} is no folder of images: use mnist, or file:FOLDER")
    if idx_file(root, "train-images-idx3-ubyte") or idx_file(root, "t10k-images-idx3-ubyte"):
        return _idx_folder(root, config=config, split=split)
    return _class_folders(root, config=config, split=split)


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the built-in images (10,000, 28, 28) and their labels (10,000,), both uint8: unpacked once."""
    with np.load(io.BytesIO(read_asset("mnist10k.npz")), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def _mnist(*, config: Any, split: str) -> ArrayImages:
    images, labels = _digits()
    part = slice(None, MNIST_TRAIN) if split == "train" else slice(MNIST_TRAIN, None)
    return ArrayImages(
        "mnist", split=split, sha256=SHA256["mnist10k.npz"], images=images[part], labels=labels[part], config=config
    )


def idx_file(root: Path, stem: str) -> Path | None:
    """Return the file of that name in either usual spelling (`-idx3` or `.idx3`), plain or .gz, or None."""
    spellings = (stem, stem.replace("-idx", ".idx"))
    return next((p for s in spellings for p in (root / s, root / f"{s}.gz") if p.is_file()), None)


def _idx_folder(root: Path, *, config: Any, split: str) -> ArrayImages:
    digest, arrays = hashlib.sha256(), []
    for kind, n_dims in (("images", 3), ("labels", 1)):
        stem = f"{_IDX_PREFIX[split]}-{kind}-idx{n_dims}-ubyte"
        path = idx_file(root, stem)
        if path is None:
            raise DataError(f"{root} has no {stem} (or .gz), needed for the {split} split: add the file")
        content = path.read_bytes()
        digest.update(content)
        arrays.append(_parse_idx(content, path=path, n_dims=n_dims))
    images, labels = arrays
    if len(images) != len(labels):
        raise DataError(f"{root} has {len(images)} {split} images and {len(labels)} labels: download it again")
    return ArrayImages(str(root), split=split, sha256=digest.hexdigest(), images=images, labels=labels, config=config)


def _parse_idx(content: bytes, *, path: Path, n_dims: int) -> np.ndarray:
    """Read the IDX form (yann.lecun.com/exdb/mnist): 0, 0, type, dimensions, big-endian sizes, then the values."""
    try:
        raw = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from error
    unsigned_bytes = 8
    header = 4 + 4 * n_dims
    sizes = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    if raw[:4] != bytes([0, 0, unsigned_bytes, n_dims]) or len(raw) != header + math.prod(sizes):
        raise DataError(f"{path} is not a whole IDX file of unsigned bytes in {n_dims} dimensions: download it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(sizes)


def _class_folders(root: Path, *, config: Any, split: str) -> FolderImages:
    own = next((root / name for name in _SPLIT_FOLDERS[split] if (root / name).is_dir()), None)
    has_splits = any((root / name).is_dir() for name in _SPLIT_FOLDERS["train"])
    if has_splits and own is None:
        raise DataError(f"{root} has a train folder and none for validation: add {root / 'validation'}")
    folder = own if has_splits and own else root
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    found = ((file, i) for i, path in enumerate(classes) for file in sorted(path.rglob("*")))
    listed = [(file, i) for file, i in found if file.suffix.lower() in _SUFFIXES]
    if not has_splits:
        held_out = split == "validation"
        listed = [x for i, x in enumerate(listed, start=1) if (i % HELD_OUT_IMAGE == 0) == held_out]
    if not listed:
        raise DataError(
            f"{folder} has no images for the {split} split: it needs IDX files (train-images-idx3-ubyte, ...) "
            f"or one subfolder of images a class"
        )
    files, labels = zip(*listed, strict=True)
    return FolderImages(str(root), split=split, root=root, files=files, labels=labels, config=config)
