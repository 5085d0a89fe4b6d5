"""Parameters that several stages of a pipeline hold."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

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
