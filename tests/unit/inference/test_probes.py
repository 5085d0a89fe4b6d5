"""Probes against their definitions: the minimum of a convex objective, votes in a loop, scipy's interval."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from paralab.inference.probes import (
    L2,
    TEMPERATURE,
    fit_softmax,
    linear_probe,
    nearest_neighbours,
    standardiser,
    wilson_interval,
)

CLASSES = 3


def clouds(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Overlapping clouds of points (n, 5) fp64, one a class, and their labels (n,)."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=n)
    x = generator.normal(size=(n, 5)) * [1, 1, 3, 1, 1] + np.eye(CLASSES, 5)[labels] * 2
    return torch.from_numpy(x), torch.from_numpy(labels)


def test_the_linear_probe_is_at_the_minimum_of_its_objective() -> None:
    x, labels = clouds(200, 0)
    weights, bias = fit_softmax(x, labels, n_classes=CLASSES)
    off = (x @ weights + bias).softmax(dim=1) - torch.nn.functional.one_hot(labels, CLASSES)
    gradient = x.T @ off / len(x) + L2 * weights  # of the mean cross entropy and the penalty, in closed form
    assert weights.abs().max() > 0.5 and gradient.abs().max() < 1e-6 and off.mean(dim=0).abs().max() < 1e-6


def test_the_linear_probe_asks_nothing_of_the_scale_of_features() -> None:
    (x, labels), (other, of) = clouds(300, 0), clouds(300, 1)
    scale, shift = torch.tensor([1e-3, 1e3, 1, 7, 1]), torch.arange(5)
    found = [
        linear_probe(change(x), labels, n_classes=CLASSES)(change(other))
        for change in (lambda y: y, lambda y: y * scale + shift)
    ]
    assert torch.equal(*found)
    assert 0.7 < (found[0] == of).double().mean() < 0.95, "the clouds overlap"


def test_a_feature_that_never_varies_is_zero() -> None:
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=torch.float64)
    got = standardiser(x)(torch.tensor([[2.0, 5.0]], dtype=torch.float64))
    assert got.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_vote_by_their_similarity(k: int) -> None:
    (x, labels), (other, _) = clouds(60, 0), clouds(40, 1)
    want = []
    for row in other.tolist():
        similar = []
        for near, label in zip(x.tolist(), labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(row, near, strict=True))
            similar.append((dot / math.hypot(*row) / math.hypot(*near), label))
        votes = [0.0] * CLASSES
        for cosine, label in sorted(similar, reverse=True)[:k]:
            votes[label] += math.exp(cosine / TEMPERATURE)
        want.append(votes.index(max(votes)))
    assert nearest_neighbours(x, labels, n_classes=CLASSES, k=k)(other).tolist() == want


@pytest.mark.parametrize(("right", "of"), [(0, 10), (7, 10), (1959, 2000), (2000, 2000)])
def test_the_interval_of_a_share_is_that_of_scipy(right: int, of: int) -> None:
    want = binomtest(right, of).proportion_ci(method="wilson")
    assert wilson_interval(right, of) == pytest.approx((want.low, want.high), abs=1e-12)
    with pytest.raises(ValueError, match="at least 1 is needed"):
        wilson_interval(0, 0)
