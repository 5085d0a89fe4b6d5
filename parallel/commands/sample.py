"""Draw samples from a trained diffusion model.

    paralab sample --checkpoint runs/points --n 2000 --out points.png
    paralab sample --checkpoint runs/points --denoise 0.1,0.3,1 --out near.png

--denoise adds noise to held-out samples in place of drawing new ones, and takes it away again. Points are compared with
held-out ones by a two-sample test. They are in the coordinates of training: mean 0 and standard deviation 1.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.console.clock import Moment
from paralab.console.outputs import check_writable, write_whole, written_whole
from paralab.console.phases import Phases
from paralab.console.pictures import FORMS, check_can_draw, form_of
from paralab.errors import ConfigError, DataError
from paralab.models.files import FORM, MOVED
from paralab.options.arguments import Parser, add_checkpoint, positive, whole

if TYPE_CHECKING:
    import torch

    from paralab.inference.denoise import Denoised
    from paralab.inference.restore import Trained
    from paralab.models.diffusion import Config, PointsConfig

TESTED = 2000  # points of each side in the two-sample test: the distances between them take 128 MB

TESTED_DENOISED = 500


def main(argv: list[str]) -> int:
    """Sample, write what was requested, print what was found. Returns: 0.

    Raises: ConfigError for a checkpoint of another model; DataError for one that cannot be read.
    """
    options = _parse(argv)
    import torch

    from paralab.inference.denoise import predictor
    from paralab.inference.restore import restore
    from paralab.models.diffusion import DiTConfig, PointsConfig
    from paralab.models.sampling import SAMPLERS, noise_levels, with_zero

    trained = restore(options.checkpoint, model=options.model)
    config = trained.work.model_config
    if not isinstance(config, (PointsConfig, DiTConfig)):
        raise ConfigError(f"{trained.path} is a {trained.work.spec.name} model: paralab sample needs diffusion")
    print(f"{trained.work.spec.name} {trained.work.size} from {trained.path}", file=sys.stderr)
    if options.log_prob:
        if not isinstance(config, PointsConfig):
            raise ConfigError(f"{trained.path} is a model of images: --log-prob is for points, leave it out")
        _print_log_probabilities(trained, config, Path(options.log_prob), steps=options.steps)
        return 0
    if options.denoise:
        _denoise(trained, config, options)
        return 0
    levels = noise_levels(options.steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max)
    generator = torch.Generator(trained.device).manual_seed(options.seed)
    start = config.sigma_max * torch.randn(
        options.n, *config.sample_shape, generator=generator, dtype=_dtype(trained), device=trained.device
    )
    labels = _labels(config, options.n, trained.device)
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin(f"sampling {options.n:,}", total=options.steps)
        predict = predictor(trained, labels, on_call=phases.advance)
        path = SAMPLERS[options.sampler](predict, start, levels=with_zero(levels), generator=generator).cpu()
    if isinstance(config, PointsConfig):
        print(_compare(trained, path[-1], seed=options.seed))
    if options.out:
        _write(Path(options.out), path, labels=labels, levels=levels)
        print(options.out)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab sample", description=__doc__)
    add_checkpoint(parser)
    parser.add_argument("--model", metavar=FORM, help=MOVED)
    parser.add_argument(
        "--n", type=whole(1), default=TESTED, metavar="N", help=f"Number of samples to draw (default: {TESTED})"
    )
    parser.add_argument(
        "--sampler",
        choices=("ddim", "sde"),
        default="ddim",
        help="Sampler: ddim follows the probability-flow ODE, sde the reverse SDE (default: ddim)",
    )
    parser.add_argument(
        "--steps",
        type=whole(2),
        default=100,
        metavar="S",
        help="Number of noise levels, and so of evaluations of the model (default: 100)",
    )
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="Seed of the sampling (default: 0)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="File to write: a picture (.svg, .png or .pdf), or samples, paths and noise levels (.npz) (default: none)",
    )
    parser.add_argument(
        "--denoise",
        metavar="X,X",
        type=_noise_stds,
        help="Instead of sampling, add noise of these standard deviations to held-out samples and denoise them: in one "
        "evaluation of the model, and along the ODE in --steps",
    )
    parser.add_argument(
        "--log-prob",
        metavar="FILE",
        help="Instead of sampling, print the log density at the points of this file (.npy, or .csv with x,y)",
    )
    options = parser.parse_args(argv)
    if options.log_prob and options.out:
        raise ConfigError("--log-prob prints its result: leave --out out")
    if options.denoise and (options.log_prob or options.sampler != "ddim"):
        raise ConfigError("--denoise follows the probability-flow ODE: leave --sampler and --log-prob out")
    forms = (".npz", *FORMS)
    if options.out and Path(options.out).suffix.lower() not in forms:
        raise ConfigError(f"--out {options.out}: use a name ending in {', '.join(forms)}")
    if options.out:
        check_can_draw(options.out)
        check_writable(Path(options.out), make_folders=True)
    return options


def _labels(config: "Config", n: int, device: "torch.device") -> "torch.Tensor | None":
    """Return the class of each sample (n,), in turn: images are trained with labels, points without."""
    import torch

    from paralab.models.diffusion import DiTConfig

    return torch.arange(n, device=device) % config.n_classes if isinstance(config, DiTConfig) else None


def _dtype(trained: "Trained") -> "torch.dtype":
    return next(trained.model.parameters()).dtype


def _compare(trained: "Trained", samples: "torch.Tensor", *, seed: int) -> str:
    """Say how far samples (n, dims) are from as many held-out points."""
    import numpy as np

    from paralab.inference.two_sample import energy_test

    held_out = trained.work.dataset("validation")
    n = min(len(samples), TESTED, held_out.n_samples)
    clean = held_out.samples.load(np.arange(n))[0]  # type: ignore[attr-defined]
    found = energy_test(samples[:n], clean, seed=seed)
    verdict = "no difference found" if found.p_value > 0.05 else "they differ"
    return (
        f"{n:,} samples against {n:,} held-out points: energy distance {found.distance:.4f}, "
        f"p = {found.p_value:.3f} ({verdict})"
    )


def _print_log_probabilities(trained: "Trained", config: "PointsConfig", file: Path, *, steps: int) -> None:
    """Print each point and the log density of the model there, in nats."""
    from paralab.inference.denoise import predictor
    from paralab.models.sampling import log_probability, noise_levels

    points = _read_points(file, dims=config.dims).to(trained.device, _dtype(trained))
    levels = noise_levels(steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max)
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin("log probabilities", total=2 * (steps - 1))
        predict = predictor(trained, None, on_call=phases.advance)
        found = log_probability(predict, points, levels=levels, data_std=config.sigma_data)
    for point, log_p in zip(points.tolist(), found.tolist(), strict=True):
        print(",".join(f"{value:g}" for value in point) + f",{log_p:.4f}")


def _read_points(file: Path, *, dims: int) -> "torch.Tensor":
    import numpy as np
    import torch

    try:
        if file.suffix == ".npy":
            points = np.asarray(np.load(file, allow_pickle=False))
        else:
            points = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"points {file} cannot be read ({error}): give a .npy file, or lines of x,y") from error
    if points.ndim != 2 or points.shape[1] != dims or not np.issubdtype(points.dtype, np.number):
        raise DataError(f"points {file} have shape {points.shape}: {dims} numbers a point are needed")
    return torch.from_numpy(points)


def _write(file: Path, path: "torch.Tensor", *, labels: "torch.Tensor | None", levels: "torch.Tensor") -> None:
    """Write samples and the paths (levels, n, ...) that led to them."""
    import numpy as np

    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() in FORMS:
        from paralab.commands.sample_pictures import of_samples

        write_whole(file, of_samples(path, form_of(file)))
        return
    columns = {} if labels is None else {"labels": labels.cpu().numpy()}
    with written_whole(file) as content:
        np.savez(content, samples=path[-1].numpy(), path=path.numpy(), levels=levels.numpy(), **columns)  # type: ignore[arg-type]


def _denoise(trained: "Trained", config: "Config", options: argparse.Namespace) -> None:
    """Print how far denoised samples are from their originals, and write what was requested. Raises: ConfigError."""
    from paralab.inference.denoise import denoise, held_out, predictor

    if beyond := [sigma for sigma in options.denoise if sigma > config.sigma_max]:
        raise ConfigError(f"--denoise {beyond[0]:g}: the model was trained up to {config.sigma_max:g}, use less")
    clean, labels = held_out(trained, options.n)
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin(f"denoising {len(clean):,} samples", total=len(options.denoise) * (options.steps + 1))
        found = denoise(
            predictor(trained, labels, on_call=phases.advance),
            clean,
            sigmas=options.denoise,
            sigma_min=config.sigma_min,
            steps=options.steps,
            seed=options.seed,
        )
    clean = clean.cpu()
    print("\n".join(_table(trained, clean, found, options)))
    if options.out and Path(options.out).suffix.lower() in FORMS:
        from paralab.commands.sample_pictures import of_denoised

        write_whole(Path(options.out), of_denoised(clean, found, steps=options.steps, form=form_of(Path(options.out))))
    elif options.out:
        _write_denoised(Path(options.out), clean, found)
    if options.out:
        print(options.out)


def _table(
    trained: "Trained", clean: "torch.Tensor", found: "list[Denoised]", options: argparse.Namespace
) -> "Iterator[str]":
    """Yield lines: distances from the originals as root mean squares of a number, and a test of the distribution."""
    from paralab.inference.two_sample import energy_test

    n, steps = min(len(clean), TESTED_DENOISED), f"{options.steps} steps"
    yield f"{len(clean):,} held-out samples of {trained.work.dataset('validation').name}, with noise and denoised"
    yield f"{'':8}{'distance from the original':^32}   {'p, same distribution':^32}"
    yield f"{'noise':8}" + (f"{'noisy':>9} {'1 step':>9} {steps:>12}   " * 2).rstrip()
    for one in found:
        kinds = (one.noisy, one.mean, one.sampled)
        away = [float((x - clean).square().mean().sqrt()) for x in kinds]
        alike = [energy_test(x[:n].flatten(1), clean[:n].flatten(1), seed=options.seed).p_value for x in kinds]
        yield f"{one.sigma:<8g}" + "   ".join(f"{a:>9.4f} {b:>9.4f} {c:>12.4f}" for a, b, c in (away, alike))


def _write_denoised(file: Path, clean: "torch.Tensor", found: "list[Denoised]") -> None:
    """Write originals (n, ...) and, for each noise level in turn, what became of them (levels, n, ...)."""
    import numpy as np

    kinds = {name: np.stack([getattr(one, name).numpy() for one in found]) for name in ("noisy", "mean", "sampled")}
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as content:
        np.savez(content, clean=clean.numpy(), levels=np.array([one.sigma for one in found]), **kinds)  # type: ignore[arg-type]


def _noise_stds(text: str) -> list[float]:
    return [positive(word) for word in text.split(",")]
