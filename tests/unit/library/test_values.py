"""The module that a program gives: its values, where they are made, and the batches that it is called with."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paralab import World, parallelize
from paralab.library import values
from tests.dist.own_modules import KINDS, Bare, Buffers, Plain, Tied

ALONE = World(0, 1, torch.device("cpu"))


class Asks(Bare):
    """A module whose `__init__` needs a value, which there is none of on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.start = float(self.weight.abs().max().item())


class Waits(Plain):
    """A module that computes with its own values while it is made."""

    def __init__(self) -> None:
        super().__init__()
        if not bool((self.embed.weight.abs() < 10).all()):
            raise ValueError("these are no values")


def is_empty(module: nn.Module) -> bool:
    return all(tensor.is_meta for tensor in values.tensors_of(module).values())


@pytest.mark.parametrize("made", [Plain, Tied, Asks, Waits, Buffers])
def test_ranks_but_the_first_hold_no_values(made: type[nn.Module]) -> None:
    """What is made where there is no memory stays so; what does not allow that is made, and let go of."""
    skeleton, there = values.make(made, main=False, drawn=False)
    assert is_empty(skeleton) and there is None
    assert values.digest(skeleton) == values.digest(made())
    assert {n: x.requires_grad for n, x in skeleton.named_parameters()} == {
        n: x.requires_grad for n, x in made().named_parameters()
    }


@pytest.mark.parametrize(("made", "real"), [(Plain, 0), (Waits, 1), (Buffers, 1)])
def test_a_function_is_run_for_real_only_where_it_has_to_be(made: type[nn.Module], real: int) -> None:
    """Not where the meta device does; elsewhere a value is asked for, or a plain tensor would be lost."""
    places: list[str] = []

    def make() -> nn.Module:
        places.append(torch.empty(0).device.type)
        return made()

    values.make(make, main=False, drawn=False)
    assert places == ["meta"] + ["cpu"] * real
    places.clear()
    values.make(make, main=True, drawn=False)
    assert places == ["cpu"]


def test_the_first_rank_keeps_the_tensors_of_the_module() -> None:
    module = Tied()
    skeleton, there = values.make(module, main=True, drawn=False)
    assert there is not None and all(there[name] is x for name, x in values.tensors_of(module).items())
    assert is_empty(skeleton) and skeleton.head.weight is skeleton.embed.weight


@pytest.mark.parametrize("name", KINDS)
def test_the_state_of_a_trainer_is_that_of_the_module(name: str) -> None:
    """Names, order, dtypes and values, to the bit: of a checkpoint that was loaded, say."""
    kind = KINDS[name]
    module = kind.make()
    want = {key: x.clone() for key, x in module.state_dict().items()}
    got = parallelize(module, "single", world=ALONE, loss=kind.loss).state_dict()
    assert list(got) == list(want)
    assert all(got[key].dtype == x.dtype and torch.equal(got[key], x) for key, x in want.items())


class Doubling(nn.Module):
    """Inputs of every form, of which only the first is a tensor that it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Linear(3, 3)

    def forward(self, x: Any, *more: Any, **named: Any) -> Tensor:
        return self.gain(x["x"] if isinstance(x, dict) else x)


def test_a_module_that_is_handed_over_for_evaluation_is_trained() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    trainer = parallelize(module, "single", world=ALONE, loss=F.mse_loss)
    trainer.step(X, Y)
    assert trainer.state_dict()["1.num_batches_tracked"] == 1  # counted in training alone


X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 3)


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), np.zeros((8, 3), dtype=np.float32)),
        ({"x": X}, Y),
        ((X, torch.arange(8)), Y),
        ({"x": X, "mask": torch.ones(8, dtype=torch.bool)}, Y),
        (({"x": X},), Y),
    ],
    ids=["tuple", "list", "numpy", "named", "several", "named-several", "nested"],
)
def test_batches_of_every_form_are_computed_with_alike(batch: Any) -> None:
    torch.manual_seed(0)
    module = Doubling()
    want = F.mse_loss(module(X), Y).item()
    trainer = parallelize(module, "single", world=ALONE, loss=F.mse_loss)
    assert trainer.evaluate(batch) == pytest.approx(want, rel=1e-6)
    steps = [trainer.step(rows).loss for rows in trainer.shard(batch for _ in range(2))]  # a generator
    assert steps[0] == pytest.approx(want, rel=1e-6) and steps[1] < steps[0]


def test_the_generators_of_a_program_are_left_alone() -> None:
    """Dropout draws in a step, and what the program draws afterwards does not depend on it."""
    trainer = parallelize(nn.Sequential(Bare(), nn.Dropout(0.5)), "single", world=ALONE, loss=F.mse_loss)
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    trainer.step(torch.randn(8, 5, generator=torch.Generator()), torch.zeros(8, 3))
    assert torch.equal(torch.rand(1), want)
