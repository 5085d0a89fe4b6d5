"""What a trainer makes of the numbers of all ranks, and from which batch on it goes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab import Trainer, World, parallelize


def alone() -> Trainer:
    world = World(0, 1, torch.device("cpu"))
    return parallelize(nn.Linear(1, 1), "single", world=world, loss=F.mse_loss)


def test_batches_that_were_trained_with_are_passed_over() -> None:
    batches = [(torch.full((2, 1), float(number)), torch.zeros(2, 1)) for number in range(4)]
    assert [x[0].item() for x, _ in alone().shard(batches, skip=2)] == [2, 3]


def test_a_loss_of_uneven_rows_is_the_mean_over_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, rows = alone(), (torch.ones(2, 1), torch.zeros(2, 1))
    mine = trainer.evaluate(rows)
    trainer.mesh = SimpleNamespace(world=object(), device=torch.device("cpu"))  # type: ignore[assignment]
    theirs: Tensor = torch.tensor([3 * 7.0, 3.0], dtype=torch.float64)  # of a rank with three rows, whose loss is 7
    monkeypatch.setattr("torch.distributed.all_reduce", lambda totals, group: totals.add_(theirs))
    assert trainer.evaluate(rows) == pytest.approx((2 * mine + 3 * 7) / 5)


def test_a_term_of_a_loss_is_the_mean_over_the_ranks_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(every: list[dict[str, float]], mine: dict[str, float], group: Any) -> None:
        every[:] = [{}, mine, {"balance": 3.0}]  # the first holds no end of the pipeline

    trainer = Trainer.__new__(Trainer)
    trainer.mesh, trainer.layout = SimpleNamespace(world=object()), SimpleNamespace(world_size=3)  # type: ignore[assignment]
    monkeypatch.setattr(trainer, "_has_terms", lambda here: True)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    forward: Any = SimpleNamespace(noted={"balance": [torch.tensor(0.0), torch.tensor(2.0)]})
    assert trainer._terms([forward]) == {"balance": 2.0}
