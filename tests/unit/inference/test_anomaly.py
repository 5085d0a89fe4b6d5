"""Scores and areas against loops over their definitions."""

import numpy as np
import pytest
import torch

from paralab.inference.anomaly import auroc, distance_to_nearest


def test_the_area_and_its_variance_are_those_of_delong() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 1, 40).round(1), generator.normal(0, 1, 60).round(1)  # rounded: there are ties
    psi = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in b] for x in a]
    area = sum(map(sum, psi)) / 2400
    of_a, of_b = [sum(row) / 60 for row in psi], [sum(row[j] for row in psi) / 40 for j in range(60)]
    variance = sum((v - area) ** 2 for v in of_a) / 39 / 40 + sum((v - area) ** 2 for v in of_b) / 59 / 60
    got = auroc(torch.from_numpy(a), torch.from_numpy(b))
    logit = [np.log(p / (1 - p)) for p in (got.low, got.value, got.high)]
    assert got.value == pytest.approx(area, abs=1e-12)
    half = 1.959964 * variance**0.5 / (area * (1 - area))
    assert np.diff(logit) == pytest.approx([half, half], rel=1e-6)


def test_the_interval_holds_the_area_as_often_as_it_says() -> None:
    generator, truth = torch.Generator().manual_seed(0), 0.76025  # of normals one standard deviation apart
    held = 0
    for _ in range(400):
        found = auroc(torch.randn(30, generator=generator) + 1, torch.randn(50, generator=generator))
        held += found.low <= truth <= found.high
    assert 0.92 < held / 400 < 0.98


def test_what_does_not_overlap_has_an_area_of_one() -> None:
    low, high = torch.arange(3.0), torch.arange(3.0) + 10
    assert (auroc(high, low).value, auroc(low, high).value, auroc(low, low).value) == (1.0, 0.0, 0.5)
    with pytest.raises(ValueError, match="at least 2 of each are needed"):
        auroc(high[:1], low)


def test_the_score_is_the_mean_distance_to_the_nearest() -> None:
    generator = np.random.default_rng(0)
    x, other = generator.normal(size=(20, 3)) * [1, 5, 1] + 2, generator.normal(size=(4, 3))
    standard = (x - x.mean(0)) / x.std(0, ddof=1)
    got = distance_to_nearest(torch.from_numpy(x), k=2)(torch.from_numpy(other))
    for row, score in zip((other - x.mean(0)) / x.std(0, ddof=1), got.tolist(), strict=True):
        cosines = standard @ row / np.linalg.norm(standard, axis=1) / np.linalg.norm(row)
        assert score == pytest.approx(1 - np.sort(cosines)[-2:].mean(), abs=1e-12)
