"""The marks by which tensors are compared without keeping them: no difference hides, and sizes are about right."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from paralab.parity.marks import WIDTH, gap, length, mark


@pytest.mark.parametrize("shape", [(), (7,), (WIDTH,), (3, 1000), (64, 33, 65)])
def test_the_size_of_a_difference(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    want = torch.randn(shape, generator=generator, dtype=torch.float64)
    for difference in (0.01 * torch.randn(shape, generator=generator, dtype=torch.float64), torch.full(shape, 0.01)):
        size = difference.square().mean().sqrt().item()
        assert gap(mark(want + difference), mark(want), want.numel()) == pytest.approx(size, rel=0.25)
    assert length(mark(want), want.numel()) == pytest.approx(want.square().mean().sqrt().item(), rel=0.25)
    assert gap(mark(want.clone()), mark(want), want.numel()) == 0.0


def test_one_element_and_one_exchange_are_seen() -> None:
    want = torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = want.clone()
    one[50, 50] += 1
    assert gap(mark(one), mark(want), want.numel()) == pytest.approx(1 / 100, rel=1e-6)
    assert gap(mark(want.roll(1, 0)), mark(want), want.numel()) > 0.5
    assert gap(mark(want.T), mark(want), want.numel()) > 0.5


def test_the_mark_of_a_sum_is_the_sum_of_the_marks() -> None:
    a, b = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert np.allclose(mark(a + 2 * b), mark(a) + 2 * mark(b), rtol=0, atol=1e-12)


def test_what_is_not_finite_differs_from_what_is() -> None:
    want, got = torch.ones(1000), torch.ones(1000)
    got[3] = float("nan")
    assert gap(mark(got), mark(want), 1000) == float("inf") and gap(mark(got), mark(got.clone()), 1000) == 0.0


def test_tokens_and_strides() -> None:
    tokens = torch.arange(6000).view(60, 100)
    assert gap(mark(tokens), mark(tokens.double()), 6000) == 0.0
    assert gap(mark(tokens.t().contiguous().t()), mark(tokens), 6000) == 0.0
    assert gap(mark(F.one_hot(tokens[0])), mark(F.one_hot(tokens[0]) > 0), 10_000) == 0.0
