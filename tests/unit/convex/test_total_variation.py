"""Total variation and its dual reach scipy's minimum, at the rates of their theorems."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from paralab.convex import measured, optimum
from paralab.convex.method import Method, Settings
from paralab.convex.methods import TV
from paralab.convex.reduction import CountedReduction
from paralab.convex.signals import piecewise_constant, with_noise
from paralab.convex.total_variation import TotalVariation, adjoint, differences
from tests.unit.thread_ranks import ThreadRanks

METHODS = list(TV.values())


def noisy(*shape: int) -> Tensor:
    """Rows (rows, ...) of a step with noise on it."""
    steps = torch.zeros(shape, dtype=torch.float64)
    steps[..., shape[-1] // 2 :] = 1
    return with_noise(steps, std=0.3, seed=0)


def test_the_adjoint_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    p = torch.randn(2, 2, 5, 4, dtype=torch.float64, generator=generator)
    assert (differences(x) * p).sum().item() == pytest.approx((x * adjoint(p)).sum().item(), rel=1e-12)
    assert differences(x)[0, :, -1].abs().max() == 0  # there is no neighbour


@pytest.mark.parametrize("shape", [(1, 40), (2, 5, 6)])
def test_the_minimum_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    """The dual is least squares within bounds, which scipy solves with a matrix."""
    rows, tv = noisy(*shape), 0.4
    problem = TotalVariation(rows, tv)
    best_dual = optimum.of_dual(problem.dual())
    best = optimum.of_primal(problem, best_dual)
    solved = []
    for row in rows:
        units = torch.eye(row.numel(), dtype=torch.float64).view(-1, *row.shape)
        matrix = differences(units).transpose(0, 1).reshape(row.numel(), -1).numpy()  # transposed
        found = lsq_linear(matrix, row.flatten().numpy(), bounds=(-tv, tv), method="bvls", tol=1e-14)
        solved.append(row.numpy() - (matrix @ found.x).reshape(row.shape))
    np.testing.assert_allclose(best.point.numpy(), np.stack(solved), atol=1e-6)
    assert best.value == pytest.approx(problem.value(torch.from_numpy(np.stack(solved))), abs=1e-8)
    gap = best.value + best_dual.value - problem.mean(rows.square()) / 2
    assert abs(gap) < 1e-10


def runs_of(method: Method, rows: Tensor, *, epochs: int) -> tuple[list[measured.Line], float]:
    problem = TotalVariation(rows, 0.5)
    best_dual = optimum.of_dual(problem.dual())
    primal = (problem, optimum.of_primal(problem, best_dual))
    function, best = primal if method.name == "subgradient" else (problem.dual(), best_dual)
    sent = CountedReduction(lambda tensor: tensor, ranks=1, backend="gloo")
    return measured.run(method, function, optimum=best, settings=Settings(), epochs=epochs, sent=sent), best.value


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("shape", [(1, 128), (2, 8, 8)])
def test_the_suboptimality_is_below_the_bound_at_every_step(method: Method, shape: tuple[int, ...]) -> None:
    lines, minimum = runs_of(method, noisy(*shape), epochs=150)
    assert all(line.bound is None or -1e-10 <= line.suboptimality <= line.bound for line in lines)
    assert sum(line.bound is not None for line in lines) == 150
    exponent, in_theory = {"1/k": (-0.9, -1.0), "1/k^2": (-1.9, -2.0)}[method.rate]
    assert (measured.measured_rate(method, lines, minimum=minimum) or 0) < exponent
    assert measured.rate_in_theory(method, lines, minimum=minimum) == pytest.approx(in_theory, abs=0.05)


def test_the_accelerated_form_is_faster() -> None:
    ista, fista = (runs_of(TV[name], noisy(1, 256), epochs=200)[0] for name in ("ista", "fista"))
    assert fista[-1].suboptimality < 0.1 * ista[-1].suboptimality


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_ranks_compute_what_one_process_computes(method: Method) -> None:
    group = ThreadRanks(2)

    def on_rank(rank: int) -> float:
        problem = TotalVariation(noisy(3, 6, 6), 0.5, rank=rank, ranks=2, reduce=group.all_reduce)
        function = problem if method.name == "subgradient" else problem.dual()
        return measured.difference_from_one_process(method, function, settings=Settings(), iterates=5)

    assert max(group.run(on_rank)) == 0


def test_noise_is_removed_from_a_signal() -> None:
    clean = piecewise_constant(256, seed=4)
    assert len(clean[0].unique()) == 13
    rows = with_noise(clean, std=0.2, seed=4)
    problem = TotalVariation(rows, 0.7)
    denoised = optimum.of_primal(problem, optimum.of_dual(problem.dual())).point
    assert (denoised - clean).square().mean() < 0.5 * (rows - clean).square().mean()
