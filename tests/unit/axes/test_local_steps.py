"""Ranks that train apart: what is under way when parameters are given other values."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paralab.axes.data import local
from paralab.axes.data.local import LocalSteps


def test_what_is_under_way_is_forgotten_where_parameters_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(x: Tensor, **options: Any) -> Any:  # over two ranks that have the same
        x.mul_(2)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(local.dist, "all_reduce", all_reduce)
    mesh: Any = SimpleNamespace(group=lambda dim: None, size=lambda dim: 2)
    parameter = nn.Parameter(torch.zeros(3))
    steps = LocalSteps([[parameter]], every=4, outer="nesterov", mesh=mesh, overlap=2)
    for _ in range(4):
        with torch.no_grad():
            parameter.add_(1.0)
        steps()
    with torch.no_grad():
        parameter.fill_(0.5)
    steps.refresh()
    steps()
    steps()  # in which the message of before would arrive
    assert torch.equal(parameter, torch.full((3,), 0.5))
    with steps.agreed():
        assert torch.equal(parameter, torch.full((3,), 0.5))
