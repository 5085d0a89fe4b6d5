"""Which samples a data rank consumes at which step: shuffled by seed, resumable by step number alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from paralab.data.dataset import Batch, Compact, Dataset
from paralab.errors import ConfigError, DataError
from paralab.layout import Division


class SampleOrder:
    """The endless order of samples: epoch after epoch, each a permutation drawn from (seed, epoch)."""

    def __init__(self, n_samples: int, *, seed: int, shuffle: bool = True) -> None:
        self.n_samples, self.seed, self.shuffle = n_samples, seed, shuffle
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def permutation(self, epoch: int) -> np.ndarray:
        """Return the sample indices of one epoch, (n_samples,) int64. The last one requested is kept."""
        if epoch != self._epoch:
            self._epoch = epoch
            generator = np.random.default_rng([self.seed, epoch])
            self._permutation = generator.permutation(self.n_samples) if self.shuffle else np.arange(self.n_samples)
        return self._permutation

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the sample index at each running position, (rows,) int64."""
        epochs, offsets = np.divmod(positions, self.n_samples)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):  # ascending, so that the epoch kept is the one the next step needs
            here = epochs == epoch
            indices[here] = self.permutation(int(epoch))[offsets[here]]
        return indices


class _Steps:
    """Sampler: for each step the (indices, positions) of one data rank, without end."""

    def __init__(self, order: SampleOrder, *, division: Division, dp_rank: int, start_step: int) -> None:
        self.order, self.start_step = order, start_step
        self.rows = np.array(division.rows_of(dp_rank), dtype=np.int64)
        self.global_batch_size = division.global_batch_size

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = self.start_step
        while True:
            positions = step * self.global_batch_size + self.rows
            yield self.order.at(positions), positions
            step += 1


class _Collated(torch.utils.data.Dataset):
    """Let DataLoader fetch a whole batch as one item."""

    def __init__(self, dataset: Dataset, *, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> Batch | DataError:
        indices, positions = where
        try:
            return self.dataset.collate(indices, positions=positions, seed=self.seed)
        except DataError as error:  # handed over, since DataLoader puts a worker's stack trace into the message
            return error


class _Stored(torch.utils.data.Dataset):
    """The same, of samples as they are stored."""

    def __init__(self, dataset: Compact) -> None:
        self.dataset = dataset

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> Batch:
        return self.dataset.stored(where[0])


def batches(
    dataset: Dataset,
    *,
    seed: int,
    division: Division,
    dp_rank: int,
    start_step: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    pin_memory: bool = False,
    device: torch.device | str = "cpu",
    non_blocking: bool = False,
    cast_on_device: bool = False,
) -> Iterator[Batch]:
    """Yield one batch for each optimizer step, without end, on `device`.

    A batch holds this data rank's rows of the global batch in the order (accumulation, micro-batch, row), so
    `batch.split(division.chunks)` gives its micro-batches. Epochs follow each other without a gap. Resuming
    needs `start_step` only.

    shuffle: False takes the samples in their own order, the same in each epoch.
    workers: processes that load ahead (0: load in this one). Closing the iterator ends them.

    cast_on_device: copy samples of a `Compact` data set as they are stored, and make numbers of them there.

    Raises: DataError when a sample cannot be read; ConfigError for a negative number of workers.
    """
    compact = dataset if cast_on_device and isinstance(dataset, Compact) else None
    if workers < 0:
        raise ConfigError(f"workers={workers}: use 0 to load in the training process, or a positive number")
    order = SampleOrder(dataset.n_samples, seed=seed, shuffle=shuffle)
    loader = DataLoader(
        _Collated(dataset, seed=seed) if compact is None else _Stored(compact),
        batch_size=None,
        sampler=_Steps(order, division=division, dp_rank=dp_rank, start_step=start_step),
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # a loader draws its workers' seed: not from the training's random state
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        batch = batch.to(device, non_blocking=non_blocking)
        yield batch if compact is None else compact.cast(batch)
