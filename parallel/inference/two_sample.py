"""Test whether two sets of points are from the same distribution: the energy distance with a permutation test."""

from dataclasses import dataclass

import torch
from torch import Tensor

_AT_ONCE = 100  # permutations: bounds memory


@dataclass(frozen=True)
class TwoSample:
    """distance: between the two sets, 0 for equal distributions. p_value: how often chance alone gives as much."""

    distance: float
    p_value: float


def energy_test(a: Tensor, b: Tensor, *, permutations: int = 999, seed: int = 0) -> TwoSample:
    """Compare points a (n, dims) with b (m, dims) (Szekely & Rizzo 2013).

    The distance is 2 E|A - B| - E|A - A'| - E|B - B'|. The p-value is at least 1 / (permutations + 1).
    """
    points = torch.cat([a, b]).double()
    distances = torch.cdist(points, points)
    # with these weights the distance is -w' D w, and a permutation of the points is one of the weights
    weights = torch.cat([torch.full((len(a),), 1 / len(a)), torch.full((len(b),), -1 / len(b))]).double()
    found = _energy(distances, weights[:, None]).item()
    generator = torch.Generator().manual_seed(seed)
    as_much = 0
    for start in range(0, permutations, _AT_ONCE):
        count = min(_AT_ONCE, permutations - start)
        shuffled = [weights[torch.randperm(len(weights), generator=generator)] for _ in range(count)]
        as_much += int((_energy(distances, torch.stack(shuffled, dim=1)) >= found).sum())
    return TwoSample(found, (1 + as_much) / (1 + permutations))


def _energy(distances: Tensor, weights: Tensor) -> Tensor:
    """Return the energy distance for each column of weights (points, columns)."""
    return -(weights * (distances @ weights)).sum(0)
