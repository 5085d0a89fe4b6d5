"""Batches that all ranks read: whether they are the same."""

import torch

from paralab.data.dataset import Batch
from paralab.library.sharding import _mark


def test_batches_that_differ_in_their_last_row_alone_are_told_apart() -> None:
    x, y = torch.zeros(4, 2), torch.zeros(4)
    other = x.clone()
    other[-1, 0] = 1
    assert _mark(Batch((x,), y)) != _mark(Batch((other,), y))
