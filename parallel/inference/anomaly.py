"""Score how far images are from those of training, and how well such scores tell a class apart that was left out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.inference.probes import AT_ONCE, standardiser


def distance_to_nearest(x: Tensor, *, k: int) -> Callable[[Tensor], Tensor]:
    """Return what scores features (rows, features): the mean cosine distance to the k nearest of x (images, features).

    Features are standardised by x first. Nearest neighbours as scores: Sun et al. 2022, arXiv:2204.06507, section 3.
    """
    standard = standardiser(x)
    every = F.normalize(standard(x))

    def score(other: Tensor) -> Tensor:
        rows = F.normalize(standard(other)).split(AT_ONCE)
        return torch.cat([1 - (some @ every.T).topk(k, dim=1).values.mean(dim=1) for some in rows])

    return score


@dataclass(frozen=True)
class Auroc:
    """Area under the receiver operating characteristic: how often a positive scores higher than a negative.

    low, high: the ends of its interval.
    """

    value: float
    low: float
    high: float


def auroc(positives: Tensor, negatives: Tensor, *, level: float = 0.95) -> Auroc:
    """Return the area for scores of positives (m,) and negatives (n,), with its interval.

    The variance is that of DeLong, DeLong and Clarke-Pearson 1988; the interval is made on the scale of
    log(area / (1 - area)), so that it stays within 0 and 1. Where nothing overlaps the variance is 0, and it has no
    width. Raises: ValueError with fewer than two of either.
    """
    if min(len(positives), len(negatives)) < 2:
        raise ValueError(f"{len(positives)} positives and {len(negatives)} negatives: at least 2 of each are needed")
    a, b = positives.double()[:, None], negatives.double()[None]
    above = (a > b).double() + 0.5 * (a == b).double()  # (m, n)
    area = above.mean().item()
    variance = (above.mean(dim=1).var() / len(positives) + above.mean(dim=0).var() / len(negatives)).item()
    if area in (0.0, 1.0):
        return Auroc(area, area, area)
    middle, z = math.log(area / (1 - area)), NormalDist().inv_cdf((1 + level) / 2)
    half = z * math.sqrt(variance) / (area * (1 - area))
    return Auroc(area, *(1 / (1 + math.exp(-end)) for end in (middle - half, middle + half)))
