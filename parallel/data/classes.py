"""Classes by number: how those of labels are said, and labelled images without those of one class."""

import hashlib

import numpy as np
from torch import Tensor

from paralab.data.dataset import Samples
from paralab.errors import DataError


def classes_of(labels: np.ndarray) -> str:
    """Say which classes labels (n,) are of, such as `4 classes (0 to 3, no image of 2)`."""
    seen = set(np.unique(labels).tolist())
    n_classes = 1 + max(seen, default=0)
    missing = [number for number in range(n_classes) if number not in seen]
    none_of = f", no image of {', '.join(map(str, missing[:5]))}{' ...' if missing[5:] else ''}" if missing else ""
    return f"{n_classes} classes (0 to {n_classes - 1}{none_of})"


class WithoutClass:
    """The samples of all classes but one, in their order.

    Raises: DataError for samples without labels, and for a class that none of them has.
    """

    def __init__(self, samples: Samples, held_out: int) -> None:
        labels: np.ndarray | None = getattr(samples, "labels", None)
        if labels is None:
            raise DataError(f"--held-out-class with {samples.name}, which has no classes: leave it out")
        if held_out not in labels:
            there = ", ".join(map(str, np.unique(labels)))
            raise DataError(f"--held-out-class {held_out}: the classes of {samples.name} are {there}: use one of these")
        self.samples, self.left = samples, np.flatnonzero(labels != held_out)
        self.labels, self.n_samples = labels[self.left], len(self.left)
        self.name = f"{samples.name} without class {held_out}"
        self.found = f"{samples.found}; those of class {held_out} are left out"
        self.sha256 = hashlib.sha256(f"{samples.sha256} without class {held_out}".encode()).hexdigest()

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Return what the samples give at `indices` (rows,) of those that are left."""
        return self.samples.load(self.left[indices])
