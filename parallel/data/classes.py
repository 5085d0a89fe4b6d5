"""Labelled images without those of one class."""

import hashlib

import numpy as np
from torch import Tensor

from paralab.data.dataset import Samples
from paralab.errors import DataError


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
