"""Noise that belongs to a sample, and the denoising task on points and images."""

from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from paralab.data import batches, open_dataset
from paralab.data.dataset import Batch
from paralab.data.noise import philox, to_normals, uniforms
from paralab.data.points import SHAPES, Points
from paralab.errors import DataError, ModelError
from paralab.layout import Division
from paralab.models.diffusion import DiTConfig, PointsConfig

POINTS = PointsConfig(hidden=8, n_blocks=1)
IMAGES = DiTConfig(hidden=8, n_blocks=1, n_heads=1, patch_size=4, image_size=32, channels=1, n_classes=10)

# Known answers published with Random123 (kat_vectors, philox 4x32, 10 rounds).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    assert philox(np.array([counter], dtype=np.uint64), key=key).tolist() == [list(words)]


@given(
    positions=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=9),
    seed=st.integers(0, 2**64 - 1),
    count=st.integers(1, 11),
)
def test_draws_depend_on_seed_and_position_alone(positions: list[int], seed: int, count: int) -> None:
    together = uniforms(np.array(positions), seed=seed, count=count)
    for row, position in zip(together, positions, strict=True):
        alone = uniforms(np.array([position]), seed=seed, count=12)[0]
        assert row.tolist() == alone[:count].tolist()
    assert not np.array_equal(together, uniforms(np.array(positions), seed=seed ^ 1, count=count))
    assert not np.array_equal(together, uniforms(np.array(positions) ^ (1 << 40), seed=seed, count=count))


def test_draws_are_uniform_and_normal() -> None:
    draws = uniforms(np.arange(20_000), seed=5, count=6)
    normals = to_normals(draws)
    assert scipy.stats.kstest(draws.ravel(), "uniform").pvalue > 0.01
    assert scipy.stats.kstest(normals.ravel(), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(normals.T) - np.eye(6)).max() < 0.03


@pytest.mark.parametrize("name", SHAPES)
def test_denoise_points(name: str) -> None:
    dataset = open_dataset(name, config=POINTS)
    rows = np.arange(20_000)
    batch = dataset.collate(rows, positions=rows, seed=1)
    noisy, sigma = batch.inputs
    assert noisy.shape == batch.targets.shape == (20_000, 2) and sigma.shape == (20_000,)
    assert {x.dtype for x in (noisy, sigma, batch.targets)} == {torch.float32}
    clean = (noisy - sigma[:, None] * batch.targets)[sigma < 1.0]
    torch.testing.assert_close(
        clean, torch.from_numpy(Points(name, split="train").xy[rows])[sigma < 1.0], atol=1e-5, rtol=0
    )
    log_uniform = scipy.stats.loguniform(POINTS.sigma_min, POINTS.sigma_max)
    assert scipy.stats.kstest(sigma.numpy(), log_uniform.cdf).pvalue > 0.01
    assert scipy.stats.kstest(batch.targets.numpy().ravel(), "norm").pvalue > 0.01
    assert abs(scipy.stats.spearmanr(sigma, batch.targets.norm(dim=1)).statistic) < 0.03  # level tells nothing of noise


@pytest.mark.parametrize("name", SHAPES)
def test_points_are_standardized_and_splits_differ(name: str) -> None:
    train, validation = Points(name, split="train"), Points(name, split="validation")
    assert (train.n_samples, validation.n_samples) == (50_000, 10_000)
    assert np.abs(train.xy.mean(axis=0)).max() < 1e-4 and abs(train.xy.std() - 1.0) < 1e-4
    assert np.abs(validation.xy.mean(axis=0)).max() < 0.05 and abs(validation.xy.std() - 1.0) < 0.02
    assert not np.intersect1d(train.xy[:, 0], validation.xy[:, 0]).size > 1_000
    assert train.sha256 == Points(name, split="train").sha256 != validation.sha256


def test_checkerboard_leaves_the_light_squares_empty() -> None:
    x, y = SHAPES["checkerboard"](5_000, np.random.default_rng(0)).T
    assert ((np.floor(x) + np.floor(y)) % 2 == 0).all()
    assert len(set(zip(np.floor(x), np.floor(y), strict=True))) == 8


def test_denoise_images() -> None:
    dataset = open_dataset("mnist", config=IMAGES)
    rows = np.arange(64)
    batch = dataset.collate(rows, positions=rows, seed=1)
    noisy, sigma, labels = batch.inputs
    assert noisy.shape == batch.targets.shape == (64, 1, 32, 32)
    assert sigma.shape == labels.shape == (64,) and labels.dtype == torch.int64
    low = sigma < 1.0
    clean = (noisy - sigma[:, None, None, None] * batch.targets)[low]
    assert clean.min() > -1.001 and clean.max() < 1.001
    torch.testing.assert_close(clean[:, :, :2], torch.full_like(clean[:, :, :2], -1.0), atol=1e-5, rtol=0)


@given(division=st.builds(Division, *[st.integers(1, 3)] * 4))
def test_every_division_sees_the_same_draws(division: Division) -> None:
    dataset = open_dataset("spiral", config=POINTS)

    def step_3(its: Division, rank: int) -> Batch:
        return next(islice(batches(dataset, seed=2, division=its, dp_rank=rank), 3, 4))

    whole = step_3(Division(1, 1, 1, division.global_batch_size), 0)
    for rank in range(division.dp):
        rows = division.rows_of(rank)
        part = step_3(division, rank)
        for ours, full in zip((*part.inputs, part.targets), (*whole.inputs, whole.targets), strict=True):
            assert torch.equal(ours, full[rows])


def test_next_epoch_draws_new_noise() -> None:
    dataset = open_dataset("spiral", config=POINTS)
    first, second = (dataset.collate(np.array([7]), positions=np.array([p]), seed=0) for p in (7, 50_007))
    assert not torch.equal(first.targets, second.targets)


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        ("spirals", POINTS, {}, "did you mean spiral"),
        ("mnist", POINTS, {}, "is images, this model consumes points: use two_moons, spiral, checkerboard"),
        ("spiral", replace(POINTS, dims=3), {}, "set dims=2"),
        ("spiral", POINTS, {"seq_len": 8}, "leave them out"),
    ],
)
def test_bad_requests(name: str, config: PointsConfig, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(name, config=config, **options)


@dataclass(frozen=True)
class OnlyTask:
    task: str


@pytest.mark.parametrize(
    ("task", "name", "lacking"),
    [
        ("text", "alice", "seq_len, vocab_size, tokenizer"),
        ("classify", "mnist", "image_size, channels, n_classes"),
        ("denoise_points", "spiral", "dims"),
    ],
)
def test_a_config_without_what_its_data_needs_is_named(task: str, name: str, lacking: str) -> None:
    with pytest.raises(ModelError, match=f"OnlyTask has no {lacking}, which task '{task}' needs"):
        open_dataset(name, config=OnlyTask(task))
