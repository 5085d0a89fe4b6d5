"""VICReg: its loss against algorithm 1 of the paper, and over ranks against one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paralab.errors import UsageError
from paralab.layout import Layout
from paralab.models.found import count_flops
from paralab.models.spec import Flops
from paralab.models.vicreg import SPEC, Terms, VICReg, covariance, invariance, variance
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from tests.unit.thread_ranks import ThreadRanks

CONFIG = SPEC.config("tiny")
WIDTH = 6


def algorithm_1(a: Tensor, b: Tensor) -> Tensor:
    """The loss as the pseudocode of Bardes et al. 2022 has it, with torch's own statistics; a, b (samples, width)."""
    said = F.mse_loss(a, b) * 25
    for z in (a, b):
        said = said + 25 * F.relu(1 - (torch.var(z, dim=0) + 1e-4).sqrt()).mean()
        matrix = torch.cov(z.T)
        said = said + matrix[~torch.eye(len(matrix), dtype=torch.bool)].square().sum() / z.shape[1]
    return said


def embeddings(samples: int) -> Tensor:
    """Correlated coordinates with deviations on both sides of 1: all terms have a say. (2, samples, width) fp64."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    z = torch.randn(2, samples, WIDTH, generator=generator, dtype=torch.float64) @ mixed
    return z * torch.linspace(0.1, 2, WIDTH, dtype=torch.float64)


def rows(z: Tensor) -> Tensor:
    """Put the views (2, samples, width) of each sample side by side: (2 samples, width)."""
    return z.transpose(0, 1).flatten(0, 1)


def test_the_loss_is_that_of_the_paper() -> None:
    z = embeddings(12)
    got = Terms(CONFIG)(rows(z), torch.zeros(12))
    torch.testing.assert_close(got, algorithm_1(z[0], z[1]), rtol=1e-13, atol=0)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_the_loss_and_the_gradient_of_all_samples(ranks: int) -> None:
    whole = embeddings(12).requires_grad_()
    want = algorithm_1(whole[0], whole[1])
    want.backward()
    assert whole.grad is not None
    group = ThreadRanks(ranks)

    def on_rank(rank: int) -> tuple[Tensor, Tensor]:
        terms = Terms(CONFIG)
        terms.ranks, terms.rank, terms.all_gather = ranks, rank, group.all_gather
        mine = rows(whole.detach().chunk(ranks, dim=1)[rank]).requires_grad_()
        loss = terms(mine, torch.zeros(12 // ranks))
        loss.backward()
        assert mine.grad is not None
        return loss.detach(), mine.grad.unflatten(0, (-1, 2)).transpose(
            0, 1
        ) / ranks  # as the average over ranks will have it

    losses, gradients = zip(*group.run(on_rank), strict=True)
    assert group.calls == 1, "one gather forward, nothing backward"
    for loss in losses:
        torch.testing.assert_close(loss, want.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(torch.cat(gradients, dim=1), whole.grad, rtol=1e-12, atol=1e-14)


def a_model() -> VICReg:
    torch.manual_seed(0)
    return VICReg(CONFIG)


def test_labels_do_not_matter_and_views_do() -> None:
    model, views = a_model(), torch.randn(2, 4, 1, 28, 28)
    losses = [model(*views, targets=labels) for labels in (torch.zeros(4), torch.arange(4))]
    assert torch.equal(*losses) and not torch.equal(losses[0], model(views[0], views[0], targets=torch.zeros(4)))


def test_features_are_what_the_expander_is_given() -> None:
    model, images = a_model().eval(), torch.randn(3, 1, 28, 28)
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].mean((2, 3))))
    embedded = model(images, images.flip(0))
    assert embedded.shape == (6, CONFIG.expander)
    torch.testing.assert_close(model.features(images), seen[0][::2])


def test_the_expander_is_three_layers_two_of_them_with_norm_and_relu() -> None:
    head, x = a_model().train().head, torch.randn(6, SPEC.config("tiny").widths[-1], 2, 2)
    weights = {name: parameter.flatten(1) for name, parameter in head.named_parameters() if parameter.dim() == 4}
    y = x.mean((2, 3))
    for layer in "12":
        y = y @ weights[f"conv{layer}.weight"].T
        y = F.relu(F.batch_norm(y, None, None, training=True))  # weight 1 and bias 0 at the beginning
    torch.testing.assert_close(head(x, None), y @ weights["conv3.weight"].T)


def test_operations_are_those_that_are_counted() -> None:
    inputs, targets = SPEC.example(CONFIG, 8)
    counted = count_flops(SPEC.on_meta(CONFIG), inputs, targets) / 8
    of_loss = 2 * 2 * 3 * CONFIG.expander**2  # the covariances of two embeddings
    first = 2 * 2 * 28**2 * 9 * CONFIG.widths[0]  # the gradient of the images
    said = SPEC.flops_of(CONFIG)
    assert said == Flops(said.per_sample, "2 views x 3x2xMAC conv+linear")
    assert said.per_sample == pytest.approx(counted - of_loss + first, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulation": 2}, "2 micro-batches a step with vicreg, whose loss is over the whole batch"),
        ({"global_batch_size": 1}, "--global-batch-size 1 with vicreg.*: use 2 or more"),
        ({"norm": "batch"}, "--norm batch with vicreg.*: use --norm syncbatch, group or none"),
        ({"layout": "pp2/gpipe"}, "its loss is over the whole batch, which a pipeline would cut into micro-batches"),
        ({"layout": "cp2"}, "vicreg is given no sequences that ranks could share"),
        ({"layout": "dp2.tp2/sp"}, "vicreg has no sequence-parallel"),
        ({"layout": "dp2/local2", "norm": "group"}, "local2 with vicreg, whose loss .*: ranks cannot train apart"),
        ({"cast_on_device": True, "loader_workers": 1}, "its inputs are drawn at random before the copy"),
    ],
    ids=str,
)
def test_what_a_loss_over_the_batch_has_no_place_for_is_refused(options: dict[str, Any], said: str) -> None:
    layout = Layout.parse(options.pop("layout", "dp1"))
    with pytest.raises(UsageError, match=said) as caught:
        resolve(RunConfig(model="vicreg", size="tiny", layout=layout, **options))
    assert "\n" not in str(caught.value)


def test_coefficients_weigh_the_terms() -> None:
    z = rows(embeddings(8))
    alone = [
        replace(CONFIG, invariance=one, variance=two, covariance=three)
        for one, two, three in ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 2.0))
    ]
    parts = [Terms(config)(z, torch.zeros(8)) for config in alone]
    whole = Terms(replace(CONFIG, invariance=2.0, variance=2.0, covariance=2.0))(z, torch.zeros(8))
    assert all(part > 0 for part in parts)
    a, b = z.unflatten(0, (-1, 2)).unbind(1)
    terms = invariance(a, b), variance(a) + variance(b), covariance(a) + covariance(b)
    torch.testing.assert_close(torch.stack(parts), 2 * torch.stack(terms))
    with pytest.raises(ValueError, match="groups=4 does not divide expander=33"):
        replace(CONFIG, norm="group", expander=33)
    torch.testing.assert_close(sum(parts), whole)
