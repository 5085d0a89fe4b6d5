"""IDX files (yann.lecun.com/exdb/mnist) under their usual names: MNIST, Fashion-MNIST, EMNIST, KMNIST."""

import gzip
import hashlib
import math
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from paralab.data.classes import classes_of
from paralab.data.dataset import USED_FOR
from paralab.data.files import read_bytes
from paralab.errors import DataError

# train-images-idx3-ubyte, train-images.idx3-ubyte.gz, emnist-letters-test-labels-idx1-ubyte, ...
NAME = re.compile(
    r"(?P<set>.*?)(?P<split>train|training|t10k|test|val|valid|validation)[-_.](?P<kind>images|labels)"
    r"(?:[-_.]idx[13])?(?:[-_.]ubyte)?(?:\.idx)?(?:\.gz)?",
    re.IGNORECASE,
)
_ROLES = {"train": "train", "training": "train", "t10k": "test", "test": "test"}  # others: validation
_DIMS = {"images": 3, "labels": 1}
_UNSIGNED_BYTES = 8
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class IdxSet:
    """The files of one set, by role (train, validation, test) and kind (images, labels)."""

    root: Path
    files: dict[tuple[str, str], Path]

    def role(self, split: str) -> str:
        """Return which of the files are read for `split`: those of test where none are for validation."""
        has_validation = ("validation", "images") in self.files
        return "test" if split == "validation" and not has_validation else split

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray, str]:
        """Return images (n, height, width), labels (n,), both uint8, and the sha256 of both files.

        Raises: DataError when one is missing, damaged or empty, or when they are of different lengths.
        """
        digest, arrays = hashlib.sha256(), []
        role = self.role(split)
        for kind, n_dims in _DIMS.items():
            path = self._path(role, kind)
            content = read_bytes(path)
            digest.update(content)
            arrays.append(_parse(content, path=path, n_dims=n_dims))
        images, labels = arrays
        if len(images) != len(labels):
            raise DataError(
                f"{self._path(role, 'images')} has {len(images)} images and {self._path(role, 'labels').name} "
                f"{len(labels)} labels: download both again"
            )
        return images, labels, digest.hexdigest()

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """The labels of each role (n,). Raises: DataError."""
        paths = {role: path for (role, kind), path in self.files.items() if kind == "labels"}
        return {role: _parse(read_bytes(path), path=path, n_dims=1) for role, path in paths.items()}

    @property
    def n_classes(self) -> int:
        """Classes from 0 to the largest label of all splits."""
        return 1 + max((int(labels.max()) for labels in self.labels.values()), default=0)

    @property
    def found(self) -> str:
        """Say what was found and what is used for what."""
        purposes = {self.role(split): f"for {use}" for split, use in USED_FOR.items()}
        uses = (
            f"{role} {len(self.labels[role]):,} images {purposes.get(role, 'not used')}"
            for role in ("train", "validation", "test")
            if role in self.labels
        )
        return f"{classes_of(np.concatenate(list(self.labels.values())))}; {', '.join(uses)}"

    def _path(self, role: str, kind: str) -> Path:
        if (role, kind) not in self.files:
            stem = f"{'t10k' if role == 'test' else role}-{kind}-idx{_DIMS[kind]}-ubyte"
            there = ", ".join(sorted(path.name for path in self.files.values()))
            raise DataError(f"{self.root} has {there}, and no {stem} (or .gz): add the file")
        return self.files[role, kind]


def find_idx(root: Path) -> IdxSet | None:
    """Return the IDX files in a folder, or in folders of the same names as unpacking leaves them; None without any.

    Raises: DataError when they are of several sets.
    """
    sets: dict[str, dict[tuple[str, str], Path]] = {}
    for path in sorted([*root.iterdir(), *(file for sub in root.iterdir() if _is_named(sub) for file in _files(sub))]):
        match = NAME.fullmatch(path.name)
        if match is None or not _is_named(path) or not path.is_file():
            continue
        key = _ROLES.get(match["split"].lower(), "validation"), match["kind"].lower()
        sets.setdefault(match["set"].lower(), {}).setdefault(key, path)
    if len(sets) > 1:
        names = ", ".join(name.strip("-_.") or "one without a name" for name in sorted(sets))
        raise DataError(f"{root} has the IDX files of {len(sets)} sets ({names}): move those of one into a folder")
    return IdxSet(root, next(iter(sets.values()))) if sets else None


def idx_below(root: Path) -> Path | None:
    """Return a folder one or two levels below that has IDX files, as torchvision's MNIST/raw has them; or None."""
    inside = (path for deep in ("*/*", "*/*/*") for path in sorted(root.glob(deep)))
    return next((path.parent for path in inside if _is_named(path)), None)


def _is_named(path: Path) -> bool:
    name = path.name.lower()
    return not name.startswith(".") and ("idx" in name or "ubyte" in name) and bool(NAME.fullmatch(name))


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _parse(content: bytes, *, path: Path, n_dims: int) -> np.ndarray:
    """Return the array of unsigned bytes in an IDX file: 0, 0, type, dimensions, big-endian sizes, then the values.

    Raises: DataError when it is damaged, empty, or of another type or number of dimensions.
    """
    try:
        raw = gzip.decompress(content) if content.startswith(_GZIP) else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from error
    header = 4 + 4 * n_dims
    sizes = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    if raw[:4] != bytes([0, 0, _UNSIGNED_BYTES, n_dims]) or len(raw) != header + math.prod(sizes):
        raise DataError(f"{path} is not a whole IDX file of unsigned bytes in {n_dims} dimensions: download it again")
    if not math.prod(sizes):
        what = "images of no size" if sizes[0] else "no images" if n_dims > 1 else "no labels"
        raise DataError(f"{path} holds {what} (sizes {' x '.join(map(str, sizes))}): use files that hold some")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(sizes)
