"""Batches: the union over ranks is the global batch, whatever the division; resuming needs the step alone."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paralab.data import Batch, batches, open_dataset
from paralab.data.dataset import Dataset
from paralab.data.order import SampleOrder
from paralab.errors import DataError
from paralab.layout import Division
from paralab.models import SPECS

divisions = st.builds(Division, *[st.integers(1, 3)] * 4)


class Numbers:
    """Sample i is the number i; the target is its position plus a draw of (seed, position)."""

    name, sha256, found = "numbers", "", ""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        return Batch((torch.from_numpy(indices),), torch.from_numpy(positions + 1_000_000 * seed))


class Broken(Numbers):
    def collate(self, indices: np.ndarray, *, positions: np.ndarray, seed: int) -> Batch:
        raise DataError("image 7.png cannot be decoded: remove it")


def take(n_steps: int, dataset: Dataset, division: Division, **kwargs: Any) -> list[list[Batch]]:
    """Return [rank][step] batches of every data rank."""
    return [
        list(islice(batches(dataset, seed=3, division=division, dp_rank=rank, **kwargs), n_steps))
        for rank in range(division.dp)
    ]


def rebuilt(ranks: list[Batch], division: Division) -> list[tuple[int, int]]:
    """Lay the micro-batches of all ranks side by side: the global batch in order, as (sample, position)."""
    chunks = zip(*(batch.split(division.chunks) for batch in ranks), strict=True)
    return [
        (int(sample), int(position))
        for chunk in chunks
        for part in chunk
        for sample, position in zip(*part.inputs, part.targets, strict=True)
    ]


@given(division=divisions, n_samples=st.integers(1, 60), start=st.integers(0, 5))
def test_union_over_ranks_is_the_global_batch_of_one_process(division: Division, n_samples: int, start: int) -> None:
    single = Division(1, 1, 1, division.global_batch_size)
    dataset = Numbers(n_samples)
    (whole,) = take(3, dataset, single, start_step=start)
    parts = take(3, dataset, division, start_step=start)
    for step in range(3):
        expected = list(zip(whole[step].inputs[0].tolist(), whole[step].targets.tolist(), strict=True))
        assert rebuilt([rank[step] for rank in parts], division) == expected
        first = (start + step) * division.global_batch_size + 3_000_000
        assert [position for _, position in expected] == list(range(first, first + division.global_batch_size))


@given(n_samples=st.integers(1, 50), seed=st.integers(0, 9), epochs=st.integers(1, 4), step=st.integers(1, 70))
def test_every_sample_once_an_epoch(n_samples: int, seed: int, epochs: int, step: int) -> None:
    order = SampleOrder(n_samples, seed=seed)
    positions = np.arange(n_samples * epochs)
    indices = np.concatenate([order.at(positions[i : i + step]) for i in range(0, len(positions), step)])
    for epoch in indices.reshape(epochs, n_samples):
        assert sorted(epoch) == list(range(n_samples))


def test_epochs_and_seeds_shuffle_differently() -> None:
    epochs = SampleOrder(50, seed=1).at(np.arange(100)).reshape(2, 50)
    other_seed = SampleOrder(50, seed=2).at(np.arange(50))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], other_seed)
    assert not np.array_equal(epochs[0], np.arange(50))
    assert not np.array_equal(epochs[1], other_seed), "nor is a later epoch an earlier one of another seed"


def test_without_shuffling_samples_come_in_their_own_order() -> None:
    (only,) = take(3, Numbers(5), Division(1, 1, 1, 4), shuffle=False)
    assert torch.cat([batch.inputs[0] for batch in only]).tolist() == [*range(5), *range(5), 0, 1]


@given(division=divisions, resume=st.integers(0, 6))
def test_resumed_batches_equal_uninterrupted_ones(division: Division, resume: int) -> None:
    whole = take(8, Numbers(23), division)
    rest = take(8 - resume, Numbers(23), division, start_step=resume)
    for rank, resumed in zip(whole, rest, strict=True):
        for a, b in zip(rank[resume:], resumed, strict=True):
            assert torch.equal(a.inputs[0], b.inputs[0]) and torch.equal(a.targets, b.targets)


def test_loader_workers_change_nothing() -> None:
    division = Division(2, 1, 2, 3)
    (here, _), (there, _) = take(5, Numbers(17), division), take(5, Numbers(17), division, workers=2)
    for a, b in zip(here, there, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0]) and torch.equal(a.targets, b.targets)


def test_loading_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(2, Numbers(9), Division(1, 1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "model", "stored", "made"),
    [
        ("alice", SPECS["gpt2"].sizes["nano"], (torch.uint16, torch.uint16), (torch.int64, torch.int64)),
        ("mnist", SPECS["resnet"].sizes["20"], (torch.uint8, torch.int64), (torch.float32, torch.int64)),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_casting_on_the_device_copies_less_and_changes_nothing(
    workers: int,
    name: str,
    model: Any,
    stored: tuple[torch.dtype, torch.dtype],
    made: tuple[torch.dtype, torch.dtype],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = []
    monkeypatch.setattr(Batch, "to", lambda batch, device, **_: copied.append(batch) or batch)
    dataset, division = (
        open_dataset(name, config=model),
        Division(dp=2, micro_batches=1, accumulation=1, micro_batch_size=3),
    )
    (there, _), (here, _) = (take(3, dataset, division, cast_on_device=on, workers=workers) for on in (True, False))
    for a, b in zip(there, here, strict=True):
        assert (a.inputs[0].dtype, a.targets.dtype) == (b.inputs[0].dtype, b.targets.dtype) == made
        assert torch.equal(a.inputs[0], b.inputs[0]) and torch.equal(a.targets, b.targets)
    assert (copied[0].inputs[0].dtype, copied[0].targets.dtype) == stored


@pytest.mark.parametrize("workers", [0, 1])
def test_data_error_keeps_its_one_line(workers: int) -> None:
    with pytest.raises(DataError) as error:
        take(1, Broken(4), Division(1, 1, 1, 2), workers=workers)
    assert str(error.value) == "image 7.png cannot be decoded: remove it"


def test_split_gives_views_and_refuses_unequal_parts() -> None:
    batch = Batch((torch.arange(6), torch.arange(12).reshape(6, 2)), torch.arange(6))
    parts = batch.split(3)
    assert [len(part) for part in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([part.inputs[1] for part in parts]), batch.inputs[1])
    assert parts[0].inputs[0].data_ptr() == batch.inputs[0].data_ptr()
    with pytest.raises(ValueError, match="6 samples"):
        batch.split(4)
