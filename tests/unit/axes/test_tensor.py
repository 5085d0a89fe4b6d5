"""Tensor parallelism without other processes: what a rank takes of a gradient that all have in full."""

import torch

from paralab.axes.tensor.layers import _ShareOfGradient


def test_shares_of_a_gradient_add_up_to_it() -> None:
    x = torch.randn(3, requires_grad=True)
    y = _ShareOfGradient.apply(x, 4)
    y.sum().backward()
    assert y.equal(x) and x.grad is not None and (4 * x.grad).equal(torch.ones(3))
