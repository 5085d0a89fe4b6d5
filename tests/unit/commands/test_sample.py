"""Sampling and log-probability, with the exact score of a mixture of Gaussians in place of a network."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from paralab import checkpoint
from paralab.commands import sample as command
from paralab.engines import native
from paralab.errors import UsageError
from paralab.inference.denoise import denoise
from paralab.inference.two_sample import energy_test
from paralab.layout import Layout
from paralab.models.sampling import SAMPLERS, log_probability, noise_levels, with_zero
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh

# Three Gaussians in the plane: weights, means, standard deviations. Mean 0, variance 1 over both coordinates.
WEIGHTS = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
MEANS = torch.tensor([[-1.2, 0.8], [1.2, 0.8], [0.0, -0.8]], dtype=torch.float64)
STD = 0.3


def density(x: Tensor, sigma: float) -> Tensor:
    """Return the exact log density (batch,) of the mixture with noise added."""
    variance = STD**2 + sigma**2
    squares = (x[:, None] - MEANS).square().sum(-1)  # (batch, components)
    return (WEIGHTS.log() - squares / (2 * variance)).logsumexp(1) - math.log(2 * math.pi * variance)


def predict(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the exact noise prediction: -sigma times the score."""
    variance = STD**2 + sigma[0] ** 2
    responsibility = (WEIGHTS.log() - (x[:, None] - MEANS).square().sum(-1) / (2 * variance)).softmax(1)
    return sigma[0] * (x - responsibility @ MEANS) / variance


def draw(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return MEANS[component] + STD * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def test_the_noise_levels_are_those_of_karras() -> None:
    levels = noise_levels(18, sigma_min=0.002, sigma_max=80.0)
    assert levels[[0, -1]].tolist() == pytest.approx([80.0, 0.002])
    i, n = 5, 18
    assert levels[i].item() == pytest.approx((80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    assert with_zero(levels)[-1] == 0


def test_log_probability_is_the_exact_density() -> None:
    sigma_min, sigma_max = 0.01, 40.0
    points = torch.cat([draw(20, seed=1), torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64)])
    levels = noise_levels(300, sigma_min=sigma_min, sigma_max=sigma_max)
    got = log_probability(predict, points, levels=levels, data_std=1.0)
    torch.testing.assert_close(got, density(points, sigma_min), rtol=0, atol=2e-3)
    fewer = log_probability(predict, points, levels=noise_levels(75, sigma_min=0.01, sigma_max=40.0), data_std=1.0)
    worst = [(x - density(points, sigma_min)).abs().max() for x in (got, fewer)]
    assert worst[1] > 4 * worst[0], "Heun's error falls with the square of the step"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_match_the_distribution(sampler: str) -> None:
    n = 600
    levels = with_zero(noise_levels(150, sigma_min=0.01, sigma_max=20.0))
    generator = torch.Generator().manual_seed(0)
    start = 20.0 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    path = SAMPLERS[sampler](predict, start, levels=levels, generator=generator)
    assert path.shape == (151, n, 2)
    assert torch.equal(path[0], start)
    assert energy_test(path[-1], draw(n, seed=2)).p_value > 0.05
    assert energy_test(1.2 * path[-1], draw(n, seed=2)).p_value < 0.01, "the test sees a wrong scale"


def test_only_the_sde_draws() -> None:
    levels, start = noise_levels(10, sigma_min=0.01, sigma_max=20.0), 20 * draw(5, seed=3)
    for name, sampler in SAMPLERS.items():
        ends = [
            sampler(predict, start, levels=levels, generator=torch.Generator().manual_seed(seed))[-1]
            for seed in (1, 1, 2)
        ]
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2]) == (name == "ddim")


def test_the_energy_distance_is_its_definition() -> None:
    a, b = draw(30, seed=4), draw(40, seed=5)

    def mean(x: Tensor, y: Tensor) -> float:
        return float(np.linalg.norm(x.numpy()[:, None] - y.numpy(), axis=-1).mean())

    assert energy_test(a, b).distance == pytest.approx(2 * mean(a, b) - mean(a, a) - mean(b, b))


def test_the_p_value_is_uniform_when_there_is_no_difference() -> None:
    values = [energy_test(draw(40, seed=i), draw(40, seed=1000 + i), permutations=99).p_value for i in range(100)]
    assert 0.35 < np.mean(values) < 0.65
    assert 0 < np.mean(np.array(values) <= 0.1) < 0.25
    same = draw(40, seed=0)
    assert energy_test(same, same, permutations=130).p_value <= 1, "however many permutations there are"


def test_one_evaluation_gives_the_mean_of_the_originals_and_the_flow_one_of_them() -> None:
    """The mean squared error of the mean is the least there is, and the flow keeps the distribution."""
    clean = draw(800, seed=6)
    small, large = denoise(predict, clean, sigmas=(0.1, 0.8), sigma_min=0.01, steps=60, seed=7)
    (other,) = denoise(predict, clean, sigmas=(0.8,), sigma_min=0.01, steps=1, seed=8)
    assert (other.noisy - large.noisy).abs().mean() > 0.5, "each seed has its own noise"
    torch.testing.assert_close(8 * (small.noisy - clean), large.noisy - clean)
    x, variance = large.noisy, STD**2 + 0.8**2
    responsibility = (WEIGHTS.log() - (x[:, None] - MEANS).square().sum(-1) / (2 * variance)).softmax(1)
    of_each = MEANS + STD**2 / variance * (x[:, None] - MEANS)  # mean of each Gaussian's originals
    torch.testing.assert_close(large.mean, (responsibility[..., None] * of_each).sum(1))
    error = {name: (getattr(large, name) - clean).square().mean() for name in ("noisy", "mean", "sampled")}
    assert error["mean"] < error["sampled"] < error["noisy"]
    assert energy_test(large.sampled, draw(800, seed=8)).p_value > 0.05
    assert energy_test(large.mean, draw(800, seed=8)).p_value < 0.01
    (least,) = denoise(predict, clean, sigmas=(0.05,), sigma_min=0.2, steps=3, seed=7)
    torch.testing.assert_close(least.sampled, least.mean)  # below the smallest level there is one step, to no noise


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for size in ("tiny-points", "tiny-dit"):
        work = resolve(RunConfig(model="diffusion", size=size, layout=Layout(), global_batch_size=4))
        engine = native.build(work.context(make_mesh(work.layout, torch.device("cpu"))))
        checkpoint.save(engine, folder / size)
    return folder


def test_the_command_tests_and_writes_points(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "samples.npz"
    words = ["--checkpoint", str(run_folder / "tiny-points"), "--n", "50", "--steps", "5"]
    assert command.main([*words, "--sampler", "sde", "--out", str(out)]) == 0
    assert "50 samples against 50 held-out points" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["path"].shape == (6, 50, 2)
        assert np.array_equal(arrays["path"][-1], arrays["samples"])
        assert arrays["levels"][0] == pytest.approx(20.0)


@pytest.mark.parametrize("size", ["tiny-points", "tiny-dit"])
def test_the_command_denoises(size: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--checkpoint", str(run_folder / size), "--n", "8", "--steps", "3", "--denoise", "0.2,0.5"]
    assert command.main([*words, "--out", str(tmp_path / "a.svg")]) == 0
    assert command.main([*words, "--out", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        away = np.sqrt(np.square(arrays["noisy"] - arrays["clean"]).mean(axis=tuple(range(1, arrays["noisy"].ndim))))
        held_out: Any = resolve(RunConfig(model="diffusion", size=size)).dataset("validation")
        np.testing.assert_array_equal(arrays["clean"], held_out.samples.load(np.arange(8))[0].numpy())
        assert arrays["levels"].tolist() == [0.2, 0.5] and away[1] / away[0] == pytest.approx(2.5, rel=1e-4)
    assert f"0.2     {away[0]:>9.4f}" in capsys.readouterr().out
    picture = (tmp_path / "a.svg").read_text()
    if size == "tiny-dit":
        assert picture.count("<image") == 8 * (1 + 2 * 3)
    else:
        assert [picture.count(f">{title}<") for title in ("Noise of 0.2", "Denoised in 3 steps")] == [1, 2]
        assert picture.count("c-grey soft") > 0


@pytest.mark.parametrize("size", ["tiny-points", "tiny-dit"])
def test_the_command_draws_pictures(size: str, run_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "picture.png"
    command.main(["--checkpoint", str(run_folder / size), "--n", "6", "--steps", "4", "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_log_probabilities(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    points = tmp_path / "points.csv"
    points.write_text("0,0\n1.5,-0.5\n")
    words = ["--checkpoint", str(run_folder / "tiny-points"), "--steps", "5", "--log-prob", str(points)]
    assert command.main(words) == 0
    lines = [[float(x) for x in line.split(",")] for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [[0, 0], [1.5, -0.5]]
    assert all(math.isfinite(line[2]) for line in lines)


def test_images_come_class_by_class(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.npz"
    command.main(["--checkpoint", str(run_folder / "tiny-dit"), "--n", "12", "--steps", "3", "--out", str(out)])
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["samples"].shape == (12, 1, 28, 28)
        assert arrays["labels"].tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.jpg"], "ending in .npz, .svg"),
        (["--log-prob", "p.csv", "--out", "x.png"], "leave --out out"),
        (["--denoise", "0.1", "--log-prob", "p.csv"], "leave --sampler and --log-prob out"),
        (["--denoise", "0.1,50"], "--denoise 50: the model was trained up to 20"),
        (["--denoise", "0.1,"], "--denoise"),
        (["--log-prob", "no-such.csv"], "cannot be read"),
        (["--steps", "1"], "at least 2"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str, run_folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        command.main(["--checkpoint", str(run_folder / "tiny-points"), *words])


def test_points_with_code_in_them_are_not_run(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "points.npy"
    np.save(file, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        command.main(["--checkpoint", str(run_folder / "tiny-points"), "--log-prob", str(file)])
