"""What training consumes: `Batch`, and the contract `Dataset` of everything that makes batches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

USED_FOR = {"train": "training", "validation": "validation"}  # what the splits are for, in sentences
SPLIT_NAMES = {  # how people call the splits, in lower case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "holdout", "heldout", "held_out", "held-out"), "test"),
}


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of one call `model(*inputs, targets=targets)`; dim 0 of every tensor is the sample.

    more: further targets. Where there are some, a model is given the tuple of all targets.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    more: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.targets.shape[0]

    @property
    def given(self) -> "Tensor | tuple[Tensor, ...]":
        """The targets as a model takes them: (rows, ...), or a tuple of such."""
        return (self.targets, *self.more) if self.more else self.targets

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with every tensor (rows, ...) changed."""
        return Batch(tuple(map(change, self.inputs)), change(self.targets), tuple(map(change, self.more)))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device; non_blocking: without waiting for the copy."""
        return self.each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory (called by torch's DataLoader)."""
        return self.each(Tensor.pin_memory)

    def split(self, chunks: int) -> list["Batch"]:
        """Cut into equal parts along dim 0. The parts are views.

        Raises: ValueError when the number of samples is not a multiple of `chunks`.
        """
        if chunks < 1 or len(self) % chunks:
            raise ValueError(f"{len(self)} samples do not divide into {chunks} equal parts")
        size = len(self) // chunks
        return [self.each(lambda x, i=i: x[i * size : (i + 1) * size]) for i in range(chunks)]  # type: ignore[misc]


class Dataset(Protocol):
    """A fixed number of samples, each reached by its index.

    sha256: of the source bytes (of the text or the points where there is no single source file).
    found: one line for people on what was found, such as "alice: 44,870 tokens for training".
    """

    name: str
    sha256: str
    found: str
    n_samples: int

    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        """Make a batch of the samples at `indices` (rows,).

        positions (rows,): running number of each sample in the whole training. Whatever is drawn for a sample
        depends on (seed, position) alone, so every layout and every resumed run sees the same draws.
        """
        ...


@runtime_checkable
class Compact(Protocol):
    """A data set whose samples take fewer bytes as they are stored than as a model takes them.

    `cast(stored(indices))` is `collate(indices, ...)`, so that a batch may be copied to its device in between.
    """

    def stored(self, indices: np.ndarray) -> Batch:
        """Return the samples at `indices` (rows,) as they are stored: bytes of images, small integers of tokens."""
        ...

    def cast(self, batch: Batch) -> Batch:
        """Return what a model takes, on the device the batch is on: float32 images, int64 tokens."""
        ...


class Samples(Protocol):
    """Clean samples, before a task makes inputs and targets of them. `found` as in `Dataset`."""

    name: str
    sha256: str
    found: str
    n_samples: int

    def load(self, indices: np.ndarray) -> tuple[Tensor, ...]:
        """Return the samples at `indices` (rows,) as float32 (rows, ...), then int64 labels (rows,) if there are."""
        ...
