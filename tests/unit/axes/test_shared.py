"""Parameters that several stages of a pipeline hold."""

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from paralab.axes.pipeline import shared as shared_module
from paralab.axes.pipeline.shared import SharedGradients, shared_parameters
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.planning.work import Work


def test_copies_on_several_ranks_stay_equal_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of three numbers depend on their order, which is one on all ranks."""
    grads = {0: torch.tensor([1e8]), 1: torch.tensor([1.0]), 3: torch.tensor([-1e8])}
    totals = []
    for rank, grad in grads.items():
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = grad.clone()
        shared = SharedGradients.__new__(SharedGradients)
        shared.rank, shared.rows = rank, [([parameter], list(grads))]
        monkeypatch.setattr(shared, "_exchange", lambda mine, peers: {peer: grads[peer] for peer in peers})
        shared()
        totals.append(parameter.grad.item())
    assert len(set(totals)) == 1, totals


@pytest.mark.parametrize(("words", "stages"), [("", [0, 1]), ("/first3", [0]), ("/first1", [0, 1])])
def test_stages_that_share_a_parameter_are_those_of_the_layout(words: str, stages: list[int]) -> None:
    """Also after other layouts were asked about."""
    tied = {"blocks.2.mlp.up.weight": "blocks.0.mlp.up.weight"}
    spec = SPEC_OF_TIED.setdefault("spec", replace(_work("").spec, tied=tied))
    found = shared_parameters(replace(_work(words), spec=spec))
    assert found.get("blocks.0.mlp.up.weight", [0]) == stages


SPEC_OF_TIED: dict[str, Any] = {}  # one for all cases, since what was found of it is kept


def _work(words: str) -> Work:
    layout = Layout.parse(f"pp2/1f1b/mb2{words}")
    return resolve(RunConfig(size="4x32x4v257", seq_len=16, layout=layout, global_batch_size=4))


def test_a_rank_with_two_copies_counts_one_and_updates_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the rank of a V-shaped pipeline that holds the first stage and the last."""
    first, last = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    monkeypatch.setattr(shared_module, "shared_parameters", lambda plan: {"weight": [0, 3]})
    monkeypatch.setattr(shared_module, "_by_origin", lambda part, plan: dict(part.named_parameters()))
    mesh = Mock(rank=lambda axis: 0)
    shared = SharedGradients({0: first, 3: last}, Mock(layout=Layout.parse("pp2/zbv/mb2"), mesh=mesh))
    assert shared.duplicates == {id(last.weight)}
    first.weight.grad, last.weight.grad = torch.ones(1, 2), torch.full((1, 2), 2.0)
    shared()
    assert first.weight.grad.tolist() == last.weight.grad.tolist() == [[3.0, 3.0]]
