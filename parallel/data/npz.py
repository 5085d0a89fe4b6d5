"""Images and labels in one .npz file: `images` and `labels`, or a pair for each split under the names in use."""

import io
import lzma
import re
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from paralab.data.classes import classes_of
from paralab.data.dataset import SPLIT_NAMES, USED_FOR
from paralab.data.files import read_bytes
from paralab.data.image_folders import HELD_OUT
from paralab.errors import DataError

# train_images and train_labels (MedMNIST), x_train and y_train (Keras), images and labels
_SPLIT = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
_NAMES = {
    "images": re.compile(rf"(?:(?P<a>{_SPLIT})_)?(?:images|x)(?:_(?P<b>{_SPLIT}))?", re.IGNORECASE),
    "labels": re.compile(rf"(?:(?P<a>{_SPLIT})_)?(?:labels|y)(?:_(?P<b>{_SPLIT}))?", re.IGNORECASE),
}
# What numpy raises of a damaged file: by zipfile, by its compressions, and by what reads the header of an array
_DAMAGED = (
    *(ValueError, OSError, EOFError, RuntimeError, MemoryError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
_MOST_CLASSES = 1 << 20  # more are no classes: identifiers, or counts
_NEEDS = "arrays images and labels are needed, or train_images, train_labels, val_images, val_labels"


@dataclass(frozen=True)
class NpzSet:
    """One file of arrays, checked as it is opened."""

    root: Path
    content: bytes

    @cached_property
    def _splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Images and labels by role; by "" where there is one pair without a role."""
        found: dict[str, dict[str, np.ndarray]] = {}
        try:
            arrays = np.load(io.BytesIO(self.content), allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it holds one array, as a .npy file does")
            for name in arrays.files:
                for kind, pattern in _NAMES.items():
                    if match := pattern.fullmatch(name):
                        role = SPLIT_NAMES.get((match["a"] or match["b"] or "").lower(), "")
                        found.setdefault(role, {})[kind] = arrays[name]
        except _DAMAGED as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"{self.root} is not a readable .npz file ({reason}): save it again with numpy.savez"
            ) from error
        pairs = {role: self._checked(pair) for role, pair in found.items() if len(pair) == len(_NAMES)}
        if not pairs or ("" not in pairs and "train" not in pairs):
            raise DataError(f"{self.root} holds {', '.join(arrays.files) or 'nothing'}: {_NEEDS}")
        return {"": pairs[""]} if "train" not in pairs else {role: pair for role, pair in pairs.items() if role}

    def _checked(self, pair: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = pair["images"], pair["labels"]
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3))
        ):
            raise DataError(
                f"{self.root} holds images of shape {images.shape} and type {images.dtype}: save them as uint8 "
                "(number, height, width) or (number, height, width, 3)"
            )
        if labels.size != len(images) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{self.root} has {len(images)} images and labels of shape {labels.shape} and type {labels.dtype}: "
                "save them as integers from 0 on, one for each image"
            )
        if not images.size:
            raise DataError(f"{self.root} holds no images: {_NEEDS}")
        if not 0 <= labels.min() <= labels.max() < _MOST_CLASSES:
            raise DataError(
                f"{self.root} holds labels from {labels.min()} to {labels.max()}: they are the numbers of classes, "
                f"from 0 on and below {_MOST_CLASSES:,}"
            )
        return images, labels.reshape(-1).astype(np.int64)  # MedMNIST's are (number, 1)

    def _role(self, split: str) -> str:
        if "" in self._splits:
            return ""
        return "test" if split == "validation" and "validation" not in self._splits else split

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray, str]:
        """Return images (n, height, width) or (n, height, width, 3) uint8, labels (n,) int64, sha256 of the file.

        Raises: DataError when the split has none.
        """
        role = self._role(split)
        if role not in self._splits:
            raise DataError(f"{self.root} has no arrays for {USED_FOR[split]}: add val_images and val_labels")
        images, labels = self._splits[role]
        if role == "":
            mine = (np.arange(1, len(labels) + 1) % HELD_OUT == 0) == (split == "validation")
            images, labels = images[mine], labels[mine]
        if not len(labels):
            raise DataError(f"{self.root} has too few images to hold out one in {HELD_OUT}: add some")
        return images, labels, sha256(self.content).hexdigest()

    @property
    def n_classes(self) -> int:
        """Classes from 0 to the largest label of all splits."""
        return 1 + max(int(labels.max()) for _, labels in self._splits.values())

    @property
    def found(self) -> str:
        """Say what was found and what is used for what."""
        head = classes_of(np.concatenate([labels for _, labels in self._splits.values()]))
        if "" in self._splits:
            n = len(self._splits[""][1])
            held_out = n // HELD_OUT
            return f"{head}; {n - held_out:,} images for training, {held_out:,} (one in {HELD_OUT}) for validation"
        purposes = {self._role(split): f"for {use}" for split, use in USED_FOR.items()}
        uses = (f"{role} {len(y):,} images {purposes.get(role, 'not used')}" for role, (_, y) in self._splits.items())
        return f"{head}; {', '.join(uses)}"


def open_npz(path: Path) -> NpzSet:
    """Read a file of arrays. Raises: DataError."""
    return NpzSet(path, read_bytes(path))
