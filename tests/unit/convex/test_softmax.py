"""The function of logistic regression is that of the model and of torch, and its methods reach scipy's minimum."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.convex import measured, newton, optimum, svrg
from paralab.convex.method import Iterate, Method, Settings
from paralab.convex.methods import LOGISTIC
from paralab.convex.reduction import CountedReduction
from paralab.convex.softmax import SoftmaxRegression, batches, centred
from paralab.data.images import Digits
from paralab.errors import ConfigError
from paralab.models import SPECS
from tests.unit.thread_ranks import ThreadRanks

N, CLASSES, L2 = 90, 3, 0.05
METHODS = list(LOGISTIC.values())


def images(n: int = N) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 2, 2) of classes that overlap, and their labels (n,)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    pixels = torch.randn(n, 1, 2, 2, generator=generator) + labels[:, None, None, None] * torch.tensor(
        [[1.0, 0], [0, -1]]
    )
    return pixels, labels


@pytest.fixture
def problem() -> SoftmaxRegression:
    pixels, labels = images()
    return SoftmaxRegression(centred(pixels), labels, CLASSES, L2)


def point_of(problem: SoftmaxRegression, seed: int = 2) -> Tensor:
    return torch.randn(problem.start().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(problem: SoftmaxRegression) -> Callable[[Tensor], Tensor]:
    def function(point: Tensor) -> Tensor:
        error = F.cross_entropy(problem.features @ point.T, problem.labels)
        return error + problem.l2 / 2 * point.square().sum()

    return function


def test_value_gradient_and_hessian_are_those_of_torch(problem: SoftmaxRegression) -> None:
    point, want = point_of(problem), loss(problem)
    value, gradient = problem.value_and_gradient(point)
    assert value == pytest.approx(want(point).item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(want, point), rtol=1e-10, atol=1e-12)
    hessian = torch.autograd.functional.hessian(want, point).reshape(point.numel(), -1)
    torch.testing.assert_close(problem.hessian(point), hessian, rtol=1e-10, atol=1e-12)


def test_it_is_the_function_of_the_model(problem: SoftmaxRegression) -> None:
    """Of weights on centred pixels, with the bias that stands for their means."""
    pixels, labels = images()
    spec = SPECS["logistic"]
    model: Any = spec.build(replace(spec.config("7"), image_size=2, n_classes=CLASSES)).double()
    point = point_of(problem)
    mean = pixels.flatten(1).double().mean(0)
    with torch.no_grad():
        model.linear.weight.copy_(point[:, :-1])
        model.linear.bias.copy_(point[:, -1] - point[:, :-1] @ mean)
    without_l2 = problem.value(point) - L2 / 2 * point.square().sum().item()
    assert model(pixels.double(), targets=labels).item() == pytest.approx(without_l2, rel=1e-12)


def test_centred_pixels_are_better_conditioned() -> None:
    images, labels, _ = Digits().arrays("train")
    small = torch.from_numpy(images[:500, ::4, ::4]) / 127.5 - 1
    constants = [
        SoftmaxRegression(features, torch.from_numpy(labels[:500]).long(), 10, 0.01).smoothness
        for features in (F.pad(small.flatten(1).double(), (0, 1), value=1.0), centred(small))
    ]
    assert constants[0] > 20 * constants[1]


def test_the_constants_bound_the_hessian(problem: SoftmaxRegression) -> None:
    for point in (problem.start(), point_of(problem), 3 * point_of(problem, seed=5)):
        eigenvalues = torch.linalg.eigvalsh(problem.hessian(point))
        assert problem.strong_convexity <= eigenvalues[0] * (1 + 1e-9)
        assert eigenvalues[-1] <= problem.smoothness
    assert problem.smoothness < problem.expected_smoothness(4) < problem.expected_smoothness(1)
    assert problem.expected_smoothness(1) == pytest.approx(problem.sample_smoothness)


def test_the_variance_is_that_of_batches(problem: SoftmaxRegression) -> None:
    best = optimum.of_softmax(problem).point
    drawn = [batch for epoch in range(60) for batch in batches(problem, size=4, seed=0, epoch=epoch)]
    assert len(drawn) == 60 * 23, "4 of 90 samples a step: an epoch rounds up"
    squared = [problem.batch_gradient(best, batch).square().sum().item() for batch in drawn]
    assert np.mean(squared) == pytest.approx(problem.gradient_variance(best, 4), rel=0.1)


@pytest.mark.parametrize("l2", [0.001, 0.05])
def test_the_minimum_is_that_of_scipy(problem: SoftmaxRegression, l2: float) -> None:
    problem = replace(problem, l2=l2)

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(flat).view_as(problem.start()).requires_grad_()
        value = loss(problem)(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.flatten().numpy()

    start = np.zeros(problem.start().numel())
    want = scipy.optimize.minimize(value_and_gradient, start, jac=True, options={"gtol": 1e-10})
    best = optimum.of_softmax(problem)
    assert best.value == pytest.approx(want.fun, abs=1e-12)
    np.testing.assert_allclose(best.point.flatten().numpy(), want.x, atol=1e-6)


def test_newton_converges_quadratically_in_ten_steps(problem: SoftmaxRegression) -> None:
    norms = [problem.gradient_norm(found.point) for found in islice(newton.iterate(problem, Settings()), 11)]
    assert min(norms) < 1e-8
    small = [norm for norm in norms if 1e-8 < norm < 1e-1]
    assert len(small) >= 2
    assert all(after < 10 * before**2 for before, after in pairwise(small))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_suboptimality_is_below_the_bound(problem: SoftmaxRegression, method: Method) -> None:
    best = optimum.of_softmax(problem)
    sent = CountedReduction(problem.reduce, ranks=1, backend="gloo")
    runs = [
        measured.run(method, problem, optimum=best, settings=Settings(batch=4, seed=seed), epochs=20, sent=sent)
        for seed in range(3)
    ]
    for lines in zip(*runs, strict=True):
        mean = np.mean([line.suboptimality for line in lines])  # bounds of stochastic methods hold in the mean
        assert lines[0].bound is None or mean <= lines[0].bound
        assert lines[0].suboptimality >= -1e-12
    assert runs[0][-1].suboptimality < 0.3 * runs[0][0].suboptimality
    assert runs[0][-1].epochs >= 20 or method.name == "newton"


def test_steps_that_fall_get_out_of_the_noise(problem: SoftmaxRegression) -> None:
    problem = replace(problem, l2=0.5)
    best, sent = optimum.of_softmax(problem), CountedReduction(problem.reduce, ranks=1, backend="gloo")
    settings = Settings(batch=4, seed=1)
    lines = measured.run(LOGISTIC["minibatch"], problem, optimum=best, settings=settings, epochs=60, sent=sent)
    early, late = ([line.suboptimality for line in lines[first : first + 6]] for first in (4, 55))
    assert np.mean(late) < 0.25 * np.mean(early)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_ranks_compute_what_one_process_computes(problem: SoftmaxRegression, method: Method, ranks: int) -> None:
    group = ThreadRanks(ranks)
    settings = Settings(batch=5, seed=3)  # which three ranks divide unevenly

    def on_rank(rank: int) -> float:
        shared = replace(problem, rank=rank, ranks=ranks, reduce=group.all_reduce)
        return measured.difference_from_one_process(method, shared, settings=settings, iterates=3)

    assert max(group.run(on_rank)) < 1e-12
    assert group.calls >= 3


def test_svrg_takes_the_steps_of_its_paper(problem: SoftmaxRegression) -> None:
    """Sebbouh et al. 2019, algorithm 1 (Free-SVRG), with the gradients of torch."""
    settings = Settings(batch=5, seed=3)
    alpha, steps = svrg.step_size(problem, settings), N // settings.batch

    def gradient(point: Tensor, rows: Tensor) -> Tensor:
        part = replace(problem, features=problem.features[rows], labels=problem.labels[rows])
        return torch.autograd.functional.jacobian(loss(part), point)

    point = anchor = problem.start()
    for epoch, found in enumerate(islice(svrg.iterate(problem, settings), 3)):
        torch.testing.assert_close(found.point, point, rtol=1e-9, atol=1e-12)
        full, points = gradient(anchor, torch.arange(N)), []
        for batch in batches(problem, size=5, seed=3, epoch=epoch):
            points.append(point)
            point = point - alpha * (full + gradient(point, batch) - gradient(anchor, batch))
        weights = [(1 - alpha * problem.strong_convexity) ** (steps - 1 - t) for t in range(steps)]
        anchor = torch.stack([w * p for w, p in zip(weights, points, strict=True)]).sum(0) / sum(weights)


def test_the_largest_difference_of_all_iterates_counts(problem: SoftmaxRegression) -> None:
    def iterates(asked: SoftmaxRegression, _: Settings) -> Iterator[Iterate]:
        for number in range(4):
            wrong = 0.5 if asked.ranks > 1 and number == 1 else 0.0
            yield Iterate(torch.full_like(asked.start(), number + wrong), epochs=number, steps=number)

    shared, early = replace(problem, rank=0, ranks=2), Method("early", "linear", iterates, None)
    found = measured.difference_from_one_process(early, shared, settings=Settings(), iterates=3)
    assert found == pytest.approx(0.5)


def test_a_gradient_that_is_not_reduced_is_seen(problem: SoftmaxRegression) -> None:
    apart = replace(problem, rank=0, ranks=2)
    difference = measured.difference_from_one_process(LOGISTIC["gd"], apart, settings=Settings(), iterates=2)
    assert difference > 1e-3


def test_a_singular_hessian_is_damped_and_said(problem: SoftmaxRegression) -> None:
    flat = replace(problem, l2=0.0)  # equal terms on all classes change nothing
    *_, last = newton.iterate(flat, Settings())
    assert last.note.startswith("Hessian is singular: damped by ")
    assert flat.gradient_norm(last.point) < 1e-8
    assert all(not found.note for found in newton.iterate(problem, Settings()))


def test_classes_that_a_plane_separates_have_no_minimum() -> None:
    features = torch.tensor([[-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [3.0, 1.0]], dtype=torch.float64)
    apart = SoftmaxRegression(features, torch.tensor([0, 0, 1, 1]), 2, l2=0.0)
    with pytest.raises(ConfigError, match=r"planes separate the classes.*use --l2 above 0"):
        optimum.of_softmax(apart)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_feature_at_its_end_in_a_class_alone_leaves_no_minimum(problem: SoftmaxRegression, sign: int) -> None:
    features = problem.features.clone()
    features[:, 0] = sign * torch.where(problem.labels == 1, 0.0, torch.arange(len(features), dtype=torch.float64) % 7)
    flat, which = replace(problem, features=features, l2=0.0), "smallest" if sign > 0 else "largest"
    with pytest.raises(ConfigError, match=f"no minimum: pixel 0 has its {which} value in all samples of class 1 and"):
        optimum.of_softmax(flat)
    with pytest.raises(ConfigError, match=r"no minimum that fp64 could find with --l2 1e-300: .* --l2 above 1e-300"):
        optimum.of_softmax(replace(flat, l2=1e-300))
    direction = flat.start()  # the weight of that pixel in class 1, and the bias against it: the loss falls and falls
    direction[1, 0] = -sign
    losses = [flat.value(scale * direction) for scale in (0.0, 1.0, 10.0, 100.0)]
    assert losses == sorted(losses, reverse=True)
    assert not problem.grows_without_end()


def test_a_class_without_samples_leaves_no_minimum(problem: SoftmaxRegression) -> None:
    with pytest.raises(ConfigError, match=r"no minimum: class 3 has no samples, so that .* use --l2 above 0"):
        optimum.of_softmax(replace(problem, n_classes=problem.n_classes + 1, l2=0.0))


def test_a_search_that_gets_nowhere_ends(problem: SoftmaxRegression, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel that is dark in a class alone, and hardly brighter in others, with a penalty too small to be seen."""
    hessians, hessian = [], SoftmaxRegression.hessian
    monkeypatch.setattr(SoftmaxRegression, "hessian", lambda self, point: hessians.append(1) or hessian(self, point))
    monkeypatch.setattr(SoftmaxRegression, "grows_without_end", lambda self: "")  # another reason
    features = problem.features.clone()
    features[:, 0] = torch.where(problem.labels == 1, 0.0, torch.arange(len(features), dtype=torch.float64) % 7 * 1e-4)
    with pytest.raises(ConfigError, match=r"no minimum was found, .* use --l2 above 1e-300"):
        optimum.of_softmax(replace(problem, features=features, l2=1e-300))
    assert len(hessians) < 40


def test_what_is_sent_is_counted() -> None:
    reduce = CountedReduction(lambda tensor: tensor, ranks=4, backend="gloo")
    reduce(torch.zeros(10, dtype=torch.float64))
    assert reduce.sent_bytes == 2 * 3 / 4 * 80  # a ring of four


def test_a_line_has_the_time_and_the_bytes_of_all_steps_up_to_it(problem: SoftmaxRegression) -> None:
    best = optimum.of_softmax(problem)
    sent = CountedReduction(lambda tensor: tensor, ranks=4, backend="gloo")
    shared, settings = replace(problem, reduce=sent), Settings()
    lines = measured.run(LOGISTIC["gd"], shared, optimum=best, settings=settings, epochs=3, sent=sent)
    step = round(1.5 * 8 * (best.point.numel() + 1))  # a gradient and the loss
    assert [line.sent_bytes for line in lines] == [0, step, 2 * step, 3 * step], "without those of the values looked at"
    assert all(before.time_s < after.time_s for before, after in pairwise(lines))
    assert measured.epochs_until(lines, 1.001 * lines[2].gradient_norm) == 2
    assert measured.epochs_until(lines, 0.0) is None
