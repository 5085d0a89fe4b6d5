"""How many samples an evaluation takes."""

from types import SimpleNamespace
from typing import Any

import pytest

from paralab.training.evaluate import count_samples


@pytest.mark.parametrize(("whole_batch", "counted"), [(True, 16), (False, 21)])
def test_a_loss_over_whole_batches_takes_every_whole_batch_and_others_every_sample(
    whole_batch: bool, counted: int
) -> None:
    work: Any = SimpleNamespace(
        spec=SimpleNamespace(whole_batch=whole_batch), division=SimpleNamespace(global_batch_size=8)
    )
    dataset: Any = SimpleNamespace(n_samples=21)
    assert count_samples(work, dataset, most_samples=None) == counted
