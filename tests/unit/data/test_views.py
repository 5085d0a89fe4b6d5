"""Views: what is drawn belongs to the sample, and where pixels come from is torch's own affine map."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from paralab.data import open_dataset
from paralab.data.order import batches
from paralab.data.views import DRAWS, LARGEST_ASPECT, LEAST_AREA, MOST_DEGREES, view
from paralab.layout import Layout
from paralab.models import SPECS

CONFIG = SPECS["vicreg"].config("tiny")
AS_IT_IS = np.array([1, 0.5, 0.5, 0.5, 0.5, 0, 0.5, 0.5])  # the draws that change nothing
SAMPLES = 12


def digits() -> torch.Tensor:
    return open_dataset("mnist", config=CONFIG).samples.load(np.arange(SAMPLES))[0]  # type: ignore[attr-defined]


def test_views_do_not_depend_on_how_a_batch_is_divided() -> None:
    dataset = open_dataset("mnist", config=CONFIG)

    def inputs(dp: int, workers: int = 0) -> torch.Tensor:
        """Return both views of the second step, in the order of the batch: (2, samples, ...)."""
        division = Layout(dp=dp).divide(SAMPLES, 1)
        rows = []
        for rank in range(dp):
            each = batches(dataset, seed=3, division=division, dp_rank=rank, start_step=1, workers=workers)
            rows.append(torch.stack(next(each).inputs))
            each.close()  # type: ignore[attr-defined]
        return torch.cat(rows, dim=1)

    whole = inputs(1)
    assert torch.equal(inputs(4), whole) and torch.equal(inputs(3, workers=1), whole)


def test_each_view_epoch_and_seed_draws_anew() -> None:
    dataset, indices = open_dataset("mnist", config=CONFIG), np.arange(4)
    (a, b), labels = (batch := dataset.collate(indices, positions=indices, seed=0)).inputs, batch.targets
    (later, _) = dataset.collate(indices, positions=indices + dataset.n_samples, seed=0).inputs
    (other, _) = dataset.collate(indices, positions=indices, seed=1).inputs
    images = digits()[:4]
    distances = [(a - x).abs().mean() for x in (b, later, other, images)]
    assert min(distances) > 0.02 and a.shape == (4, 1, 28, 28) and a.dtype == torch.float32
    assert labels.tolist() == dataset.samples.load(indices)[1].tolist()  # type: ignore[attr-defined]
    assert a.min() >= -1 and a.max() <= 1


def test_draws_in_the_middle_give_the_image_itself() -> None:
    images = digits()
    torch.testing.assert_close(view(images, np.tile(AS_IT_IS, (SAMPLES, 1))), images, rtol=0, atol=1e-5)


def test_pixels_come_from_where_the_affine_map_says() -> None:
    images, draws = digits(), np.tile(AS_IT_IS, (SAMPLES, 1))
    draws[:, :5] = np.random.default_rng(0).uniform(size=(SAMPLES, 5))
    area, aspect = LEAST_AREA + (1 - LEAST_AREA) * draws[:, 0], LARGEST_ASPECT ** (2 * draws[:, 1] - 1)
    w, h = np.minimum(1, np.sqrt(area * aspect)), np.minimum(1, np.sqrt(area / aspect))
    x, y = (1 - w) * (2 * draws[:, 2] - 1), (1 - h) * (2 * draws[:, 3] - 1)
    turn = math.radians(MOST_DEGREES) * (2 * draws[:, 4] - 1)
    theta = np.stack([[w * np.cos(turn), -h * np.sin(turn), x], [w * np.sin(turn), h * np.cos(turn), y]])
    grid = F.affine_grid(torch.from_numpy(theta).permute(2, 0, 1).float(), list(images.shape), align_corners=False)
    want = F.grid_sample(images + 1, grid, align_corners=False) - 1
    torch.testing.assert_close(view(images, draws), want, rtol=0, atol=1e-4)


def test_the_last_draws_change_brightness_contrast_and_sharpness() -> None:
    images = digits()
    for at, larger in ((6, "mean"), (7, "std")):
        low, high = np.tile(AS_IT_IS, (2, SAMPLES, 1))
        low[:, at], high[:, at] = 0.01, 0.99
        assert getattr(view(images, high), larger)() > getattr(view(images, low), larger)() + 0.02
    soft = np.tile(AS_IT_IS, (SAMPLES, 1))
    soft[:, 5] = 0.99
    assert view(images, soft).diff(dim=-1).abs().mean() < 0.8 * images.diff(dim=-1).abs().mean()
    assert soft.shape[1] == DRAWS
