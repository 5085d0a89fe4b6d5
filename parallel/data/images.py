"""Images: the built-in digits, IDX files (MNIST, Fashion-MNIST), and folders with one subfolder a class.

Whatever the source, a model is given (rows, channels, size, size) float32 in [-1, 1]: mean 0.5 and standard
deviation 0.5 of pixels in [0, 1], the same for every set. An image that is too large is scaled down until its
longer side fits; one that is too small is padded with black on all sides, never scaled up.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paralab.data import pixels
from paralab.data.assets import SHA256, read_asset
from paralab.data.contents import contents_sha256
from paralab.data.dataset import Samples
from paralab.data.files import path_of, read_bytes
from paralab.data.idx import NAME, IdxSet, find_idx, idx_below
from paralab.data.image_folders import PictureSet, find_pictures
from paralab.data.npz import NpzSet, open_npz
from paralab.errors import DataError
from paralab.models.configs import ImageConfig

MNIST_TRAIN, MNIST_HELD_OUT = 8_000, 2_000
_USE = "mnist, or file:FOLDER (an archive has to be unpacked), or file:FILE.npz"
# Of a folder so many pixels are decoded before anything is started, of the rest only the headers: about 10 s once.
_CHECKED_PIXELS = 1_000_000_000


class ArrayImages:
    """Images held in memory as uint8 (n, height, width) or (n, height, width, channels)."""

    def __init__(
        self, name: str, *, found: str, sha256: str, images: np.ndarray, labels: np.ndarray, config: ImageConfig
    ) -> None:
        self.name, self.sha256, self.found, self.n_samples = name, sha256, found, len(images)
        self.images, self.labels = images, labels.astype(np.int64)
        self.size, self.channels = config.image_size, config.channels

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Return images (rows, channels, size, size) float32 and labels (rows,) int64 at `indices` (rows,)."""
        stored, labels = self.stored(indices)
        return self.cast(stored), labels

    def stored(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the images at `indices` as uint8 (rows, 1 or 3, height, width) and their labels (rows,) int64."""
        images = torch.from_numpy(self.images[indices])
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        return images, torch.from_numpy(self.labels[indices])

    def cast(self, stored: Tensor) -> Tensor:
        """Return stored images as a model takes them, on the device they are on.

        stored: uint8 (rows, 1 or 3, height, width). Returns: float32 (rows, channels, size, size) in [-1, 1].
        """
        return pixels.fit(stored, size=self.size, channels=self.channels)


class FolderImages:
    """Picture files, decoded when requested. sha256 is over classes, names and contents of both splits.

    Raises: DataError for a model of other than 1 or 3 channels.
    """

    def __init__(self, pictures: PictureSet, *, split: str, config: ImageConfig) -> None:
        if config.channels not in (1, 3):
            raise DataError(
                f"{pictures.root} holds images of 1 or 3 channels, this model takes {config.channels}: "
                "use another --size"
            )
        classes = {name: i for i, name in enumerate(pictures.classes)}
        files = pictures.pictures(split)
        self.name, self.found, self.n_samples = str(pictures.root), pictures.found, len(files)
        self.sha256 = _identity(pictures)
        self.files = [path for _, path in files]
        self.labels = np.array([classes[name] for name, _ in files], dtype=np.int64)
        self.size, self.channels = config.image_size, config.channels

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Return images (rows, channels, size, size) float32 and labels (rows,) int64 at `indices` (rows,)."""
        images = torch.stack([self._decode(self.files[i]) for i in indices])
        return images, torch.from_numpy(self.labels[indices])

    def _decode(self, path: Path) -> Tensor:
        picture = pixels.decode(read_bytes(path), path=path)
        return pixels.fit(picture[None], size=self.size, channels=self.channels)[0]


def open_images(name: str, *, config: ImageConfig, split: str) -> Samples:
    """Open `mnist`, a folder (IDX files under their usual names, or one subfolder a class), or an .npz file.

    config: a model config with `image_size`, `channels` and `n_classes`, which must cover the labels.
    Raises: DataError when the images cannot be read or do not fit the model.
    """
    images = _images(name)
    if images.n_classes > config.n_classes:
        raise DataError(
            f"{name} has {images.n_classes} classes, this model {config.n_classes}: use --n-classes "
            f"{images.n_classes} or leave it out; to go on with a model, give it the data that it was trained on"
        )
    if isinstance(images, PictureSet):
        samples: Samples = FolderImages(images, split=split, config=config)
    else:
        arrays, labels, sha256 = images.arrays(split)
        shown = name if isinstance(images, Digits) else str(images.root)
        samples = ArrayImages(shown, found=images.found, sha256=sha256, images=arrays, labels=labels, config=config)
    if images.n_classes == 1 and config.task == "classify":
        raise DataError(f"{name} has one class, and nothing to tell apart: add a second ({images.found})")
    return samples


def count_classes(name: str) -> int:
    """Return how many classes a set of images has, over all its splits. Raises: DataError when it cannot be read."""
    return _images(name).n_classes


def _images(name: str) -> "Digits | IdxSet | NpzSet | PictureSet":
    if name == "mnist":
        return Digits()
    root = path_of(name)
    if root is not None and root.suffix.lower() == ".npz":
        return open_npz(root)
    if root is None or not root.is_dir():
        there = f"mnist, or file:{root.parent}" if root is not None and NAME.fullmatch(root.name) else _USE
        raise DataError(f"data {name!r} is no folder of images: use {there}")
    if (found := find_idx(root)) is not None:
        return found
    try:
        return find_pictures(root)
    except DataError:
        if (below := idx_below(root)) is None:
            raise
        raise DataError(f"{root} has IDX files in {below.relative_to(root)}: use --data file:{below}") from None


class Digits:
    """The built-in digits."""

    n_classes = 10
    found = f"mnist, 10 classes (0 to 9); {MNIST_TRAIN:,} images for training, {MNIST_HELD_OUT:,} for validation"

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray, str]:
        """Return images (n, 28, 28) and labels (n,) of a split, both uint8, and the sha256 of the file."""
        images, labels = _digits()
        part = slice(None, MNIST_TRAIN) if split == "train" else slice(MNIST_TRAIN, None)
        return images[part], labels[part], SHA256["mnist10k.npz"]


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the built-in images (10,000, 28, 28) and their labels (10,000,), both uint8: unpacked once."""
    with np.load(io.BytesIO(read_asset("mnist10k.npz")), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def _identity(pictures: PictureSet) -> str:
    """Return the sha256 of what a training reads of a set, and refuse what cannot be decoded of it."""
    files = [(f"{split}/{label}/{path.name}", path) for split, label, path in pictures.used()]
    left = _CHECKED_PIXELS

    def check(content: bytes, path: Path) -> None:
        nonlocal left
        left -= pixels.check(content, path=path, most_pixels=left)

    return contents_sha256(files, check=check)
