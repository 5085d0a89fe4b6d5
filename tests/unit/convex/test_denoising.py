"""Denoising and its dual reach scipy's minimum, at the rates of their theorems."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from paralab.convex import measured, optimum
from paralab.convex.denoising import Denoising
from paralab.convex.method import Method, Settings
from paralab.convex.methods import DENOISING
from paralab.convex.penalties import LONGEST, Penalty, coefficients, haar, total_variation
from paralab.convex.reduction import CountedReduction
from paralab.convex.signals import piecewise_constant, with_noise
from paralab.errors import ConfigError
from tests.unit.thread_ranks import ThreadRanks

METHODS = list(DENOISING.values())


def noisy(*shape: int) -> Tensor:
    """Rows (rows, ...) of a step with noise on it."""
    steps = torch.zeros(shape, dtype=torch.float64)
    steps[..., shape[-1] // 2 :] = 1
    return with_noise(steps, std=0.3, seed=0)


PENALTIES = ("tv", "dct", "haar", "dct,haar")


def penalty_of(name: str, shape: Sequence[int]) -> Penalty:
    return total_variation(len(shape)) if name == "tv" else coefficients(name.split(","), shape)


def matrix_of(penalty: Penalty, shape: Sequence[int]) -> np.ndarray:
    """Return W as a matrix (coefficients, numbers in a row)."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    return penalty.forward(units).transpose(0, 1).flatten(1).T.numpy()


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(40,), (6, 4)])
def test_the_adjoint_is_one_and_the_norm_a_bound(name: str, shape: tuple[int, ...]) -> None:
    penalty = penalty_of(name, shape)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    p = torch.randn(penalty.forward(x).shape, dtype=torch.float64, generator=generator)
    assert (penalty.forward(x) * p).sum().item() == pytest.approx((x * penalty.adjoint(p)).sum().item(), rel=1e-12)
    squared = np.linalg.norm(matrix_of(penalty, shape), 2) ** 2
    assert squared <= penalty.squared_norm * (1 + 1e-12)
    if name == "tv":
        assert penalty.forward(x)[0, :, -1].abs().max() == 0  # there is no neighbour


@pytest.mark.parametrize("shape", [(7,), (8,), (5, 6), (28, 28)])
def test_cosines_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = scipy.fft.dctn(x.numpy(), axes=range(1, x.dim()), norm="ortho")
    want[(slice(None), *(0,) * len(shape))] = 0  # the mean
    np.testing.assert_allclose(coefficients(["dct"], shape).forward(x)[0].numpy(), want, atol=1e-12)


def test_wavelets_are_those_of_haar() -> None:
    """Of length 8: one step over all, two over halves, four over quarters (Haar 1910), each of norm 1."""
    steps = [[1] * 4 + [-1] * 4, [1, 1, -1, -1] + [0] * 4, [0] * 4 + [1, 1, -1, -1]]
    steps += [[0] * (2 * n) + [1, -1] + [0] * (6 - 2 * n) for n in range(4)]
    wanted = np.array([[1] * 8, *steps]) / np.linalg.norm([[1] * 8, *steps], axis=1)[:, None]
    np.testing.assert_allclose(haar(8).numpy(), wanted, atol=1e-15)
    for n in (2, 12, 28):
        np.testing.assert_allclose((haar(n) @ haar(n).T).numpy(), np.eye(n), atol=1e-12)
    means = haar(12)[:3] @ torch.arange(12, dtype=torch.float64)  # of four each, times their number to the power 1/2
    np.testing.assert_allclose(means.numpy() / 2, [1.5, 5.5, 9.5])


def test_means_are_not_penalised() -> None:
    for name in ("dct", "haar", "dct,haar"):
        penalty = coefficients(name.split(","), (8, 8))
        assert penalty.forward(torch.ones(1, 8, 8, dtype=torch.float64)).abs().max() < 1e-12
    with pytest.raises(ConfigError, match="7 x 6 is odd: use --transform dct"):
        coefficients(("haar",), (7, 6))
    with pytest.raises(ConfigError, match="use --samples 4096 or fewer"):
        coefficients(("dct",), (LONGEST + 1,))


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("shape", [(1, 40), (2, 4, 6)])
def test_the_minimum_is_that_of_scipy(name: str, shape: tuple[int, ...]) -> None:
    """The dual is least squares within bounds, which scipy solves with a matrix."""
    rows, weight, penalty = noisy(*shape), 0.4, penalty_of(name, shape[1:])
    problem = Denoising(rows, weight, penalty)
    best_dual = optimum.of_dual(problem.dual())
    best = optimum.of_primal(problem, best_dual)
    matrix, solved = matrix_of(penalty, shape[1:]).T, []
    for row in rows:
        found = lsq_linear(matrix, row.flatten().numpy(), bounds=(-weight, weight), method="bvls", tol=1e-14)
        solved.append(row.numpy() - (matrix @ found.x).reshape(row.shape))
    np.testing.assert_allclose(best.point.numpy(), np.stack(solved), atol=1e-6)
    assert best.value == pytest.approx(problem.value(torch.from_numpy(np.stack(solved))), abs=1e-8)
    gap = best.value + best_dual.value - problem.mean(rows.square()) / 2
    assert abs(gap) < 1e-10


@pytest.mark.parametrize(("name", "steps"), [("dct", 1), ("haar", 1), ("dct,haar", None)])
def test_one_basis_takes_one_step(name: str, steps: int | None) -> None:
    """In an orthonormal basis the minimum is soft thresholding (Donoho 1995); in two together it is not."""
    rows, penalty = noisy(2, 8, 8), coefficients(name.split(","), (8, 8))
    problem = Denoising(rows, 0.3, penalty).dual()
    first = problem.step(problem.start())
    found = penalty.forward(problem.denoised(first))
    wanted = penalty.forward(rows)
    thresholded = wanted.sign() * (wanted.abs() - 0.3).clamp(min=0)
    assert torch.allclose(found, thresholded, atol=1e-12) == (steps == 1)
    assert (problem.gradient_norm(first) < 1e-12) == (steps == 1)


def runs_of(method: Method, rows: Tensor, *, epochs: int, penalty: str = "tv") -> tuple[list[measured.Line], float]:
    problem = Denoising(rows, 0.5, penalty_of(penalty, rows.shape[1:]))
    best_dual = optimum.of_dual(problem.dual())
    primal = (problem, optimum.of_primal(problem, best_dual))
    function, best = primal if method.name == "subgradient" else (problem.dual(), best_dual)
    sent = CountedReduction(lambda tensor: tensor, ranks=1, backend="gloo")
    return measured.run(method, function, optimum=best, settings=Settings(), epochs=epochs, sent=sent), best.value


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("penalty", "shape"), [("tv", (1, 128)), ("tv", (2, 8, 8)), ("dct,haar", (2, 8, 8))])
def test_the_suboptimality_is_below_the_bound_at_every_step(
    method: Method, penalty: str, shape: tuple[int, ...]
) -> None:
    lines, minimum = runs_of(method, noisy(*shape), epochs=150, penalty=penalty)
    assert all(line.bound is None or -1e-10 <= line.suboptimality <= line.bound for line in lines)
    assert sum(line.bound is not None for line in lines) == 150
    exponent, in_theory = {"1/k": (-0.9, -1.0), "1/k^2": (-1.9, -2.0)}[method.rate]
    assert (measured.measured_rate(method, lines, minimum=minimum) or 0) < exponent
    assert measured.rate_in_theory(method, lines, minimum=minimum) == pytest.approx(in_theory, abs=0.15)


def test_the_accelerated_form_is_faster() -> None:
    ista, fista = (runs_of(DENOISING[name], noisy(1, 256), epochs=200)[0] for name in ("ista", "fista"))
    assert fista[-1].suboptimality < 0.1 * ista[-1].suboptimality


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_ranks_compute_what_one_process_computes(method: Method) -> None:
    group, penalty = ThreadRanks(2), total_variation(2)

    def on_rank(rank: int) -> float:
        problem = Denoising(noisy(3, 6, 6), 0.5, penalty, rank=rank, ranks=2, reduce=group.all_reduce)
        function = problem if method.name == "subgradient" else problem.dual()
        alone = function.alone()
        assert function.value(function.start()) == pytest.approx(alone.value(alone.start()), rel=1e-12)
        return measured.difference_from_one_process(method, function, settings=Settings(), iterates=5)

    assert max(group.run(on_rank)) == 0


def test_noise_is_removed_from_a_signal() -> None:
    clean = piecewise_constant(256, seed=4)
    assert len(clean[0].unique()) == 13 == len(piecewise_constant(13, seed=4)[0].unique()), "also where all places jump"
    rows = with_noise(clean, std=0.2, seed=4)
    assert not torch.equal(rows, with_noise(clean, std=0.2, seed=5))
    problem = Denoising(rows, 0.7, total_variation(1))
    denoised = optimum.of_primal(problem, optimum.of_dual(problem.dual())).point
    assert (denoised - clean).square().mean() < 0.5 * (rows - clean).square().mean()
