"""How much frozen features say of the classes: a linear classifier on them, and the classes of nearest neighbours."""

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

L2 = 1e-3  # penalty on the squares of the weights of the linear probe
TEMPERATURE = 0.07  # of the votes of neighbours (Wu et al. 2018, "Unsupervised Feature Learning ...", section 3.4)
AT_ONCE = 1024  # rows of similarities: bounds memory

Classify = Callable[[Tensor], Tensor]  # features (rows, features) -> classes (rows,) int64


def standardiser(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what gives features (rows, features) the mean 0 and the deviation 1 of x (images, features)."""
    mean, std = x.mean(dim=0), x.std(dim=0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a feature that never varies is 0 then
    return lambda other: (other - mean) / std


def linear_probe(x: Tensor, labels: Tensor, *, n_classes: int, on_step: Callable[[], None] = lambda: None) -> Classify:
    """Fit a linear classifier: softmax regression with a penalty on the weights, on standardised features.

    x: (images, features) fp64. labels: (images,) int64. The objective, mean cross entropy + L2 / 2 |weights|^2, has one
    minimum, which is found to 1e-7 of its gradient. on_step: called after each evaluation of it.
    """
    standard = standardiser(x)
    weights, bias = fit_softmax(standard(x), labels, n_classes=n_classes, on_step=on_step)
    return lambda other: (standard(other) @ weights + bias).argmax(dim=1)


def fit_softmax(
    x: Tensor, labels: Tensor, *, n_classes: int, on_step: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Return weights (features, classes) and bias (classes,) at the minimum of the objective of `linear_probe`.

    x: (images, features) fp64. labels: (images,) int64.
    """
    weights = x.new_zeros(x.shape[1], n_classes).requires_grad_()
    bias = x.new_zeros(n_classes).requires_grad_()
    solver = torch.optim.LBFGS(
        [weights, bias], max_iter=2000, tolerance_grad=1e-7, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weights + bias, labels) + L2 / 2 * weights.square().sum()
        loss.backward()
        on_step()
        return loss.item()

    with torch.enable_grad():
        solver.step(closure)
    return weights.detach(), bias.detach()


def nearest_neighbours(x: Tensor, labels: Tensor, *, n_classes: int, k: int) -> Classify:
    """Classify by the k images whose features have the largest cosine similarity s, each with exp(s / 0.07) votes.

    x: (images, features). labels: (images,) int64.
    """
    every, votes_of = F.normalize(x), F.one_hot(labels, n_classes).to(x.dtype)

    def classify(other: Tensor) -> Tensor:
        found = []
        for rows in F.normalize(other).split(AT_ONCE):
            similar, which = (rows @ every.T).topk(k, dim=1)  # both (rows, k)
            found.append(((similar / TEMPERATURE).exp()[..., None] * votes_of[which]).sum(dim=1).argmax(dim=1))
        return torch.cat(found)

    return classify


def wilson_interval(right: int, of: int, *, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share of successes (Wilson 1927; Brown, Cai and DasGupta 2001).

    Raises: ValueError without a single trial.
    """
    if of < 1:
        raise ValueError("a share of 0 trials: at least 1 is needed")
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (right + z**2 / 2) / (of + z**2)
    half = z / (of + z**2) * math.sqrt(right * (of - right) / of + z**2 / 4)
    return middle - half, middle + half
