"""Logistic regression is one layer under a softmax, on pixels; ranks divide its samples and nothing else."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from paralab.axes.check import check_split
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.parity.model_rules import check

SPEC = SPECS["logistic"]
CONFIG = SPEC.config("7")


def test_the_loss_is_that_of_scipy() -> None:
    check(SPEC, CONFIG)
    model = SPEC.built(CONFIG, seed=3).double()
    images, labels = torch.randn(5, 1, 7, 7, dtype=torch.float64), torch.tensor([0, 9, 3, 3, 1])
    weight, bias = (parameter.detach().numpy() for parameter in model.linear.parameters())
    logits = images.flatten(1).numpy() @ weight.T + bias
    want = -log_softmax(logits, axis=1)[np.arange(5), labels.numpy()].mean()
    assert model(images, targets=labels).item() == pytest.approx(want, rel=1e-12)
    np.testing.assert_allclose(model(images).detach().numpy(), logits, rtol=1e-12)


@pytest.mark.parametrize("layout", ["tp2", "pp2/1f1b/mb2", "cp2", "dp2.ep2", "dp2.tp2"])
def test_only_data_ranks_divide_it(layout: str) -> None:
    with pytest.raises(LayoutError, match="one layer with 10 outputs, so only its samples are divided: use dpN"):
        check_split(Layout.parse(layout), spec=SPEC, config=CONFIG)


@pytest.mark.parametrize("layout", ["dp1", "dp4", "dp3/zero1", "dp2/zero2", "dp4/zero3/shard2"])
def test_every_stage_of_zero_takes_it(layout: str) -> None:
    check_split(Layout.parse(layout), spec=SPEC, config=CONFIG)
