"""What each process of `paralab optimise` does: build the problem, find its minimum, and measure methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from paralab.commands.optimise import Asked
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.convex import measured, optimum, penalties, signals
from paralab.convex.denoising import Denoising
from paralab.convex.measured import Line
from paralab.convex.method import Method, Optimum, Problem, Settings
from paralab.convex.methods import METHODS
from paralab.convex.reduction import CountedReduction
from paralab.convex.softmax import SoftmaxRegression, centred, hessian_bytes
from paralab.errors import ConfigError
from paralab.models.configs import ImageConfig
from paralab.models.logistic import LogisticConfig
from paralab.models.spec import keep
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.allowed import check_processes_fit, memory_available_bytes
from paralab.processes.cluster import Rank
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh
from paralab.running import task

PARITY_ITERATES = 2

Advance = Callable[[int], object]  # told how many more steps of a phase were done


@dataclass(frozen=True)
class Found:
    """What was measured. lines: of each method. minima: of the function that each minimises. parity: how far a method's
    iterates are from those of one process, of several ranks. facts: lines on the problem. shown: clean, noisy and
    denoised rows."""

    lines: Mapping[str, list[Line]]
    minima: Mapping[str, float]
    parity: Mapping[str, float]
    facts: tuple[str, ...]
    shown: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A problem with its minimum, for each method. shown: what to draw of it."""

    facts: tuple[str, ...]
    of: Callable[[Method], tuple[Problem, Optimum]]
    shown: tuple[Tensor, ...] = ()


def _run(asked: Asked) -> RunConfig:
    return RunConfig(
        model="logistic",
        size=asked.of.get("size", "7"),
        data=asked.of.get("data"),
        nproc=asked.nproc,
        precision="fp64",
        seed=asked.seed,
    )


def check(asked: Asked) -> None:
    """Refuse, before processes are started, what the data have too few images for, or what memory cannot hold.

    Raises: ConfigError, DataError, WorldError.
    """
    if asked.problem == "signal":
        return
    work = resolve(_run(asked))
    images = work.dataset().n_samples
    for option in ("global_batch_size", "samples"):
        if (wanted := asked.of.get(option, 0)) > images:
            flag = option.replace("_", "-")
            raise ConfigError(f"--{flag} {wanted} with {images} images: use {images} or fewer")
    if asked.problem == "logistic":
        _check_hessian(work, asked.nproc)


def measure(rank: Rank, progress: Progress, began: Moment, asked: Asked) -> Found:
    """Measure the methods on this rank. Collective over all ranks."""
    phases = Phases(began, shown=rank.is_main)
    with task.on_rank(_run(asked), rank, progress, phases=phases) as here:
        phases.begin("minimum: steps")
        reduce = _reduction(here.mesh)
        prepared = PROBLEMS[asked.problem](asked, here.work, here.mesh, reduce, phases.advance)
        settings = Settings(batch=asked.of.get("global_batch_size", 1), seed=asked.seed)
        lines, minima, parity = {}, {}, {}
        for name in asked.methods:
            method, (problem, best) = METHODS[name], prepared.of(METHODS[name])
            minima[name] = best.value
            if rank.world_size > 1:
                phases.begin(f"{name}: parity")
                parity[name] = _parity(method, problem, settings)
            phases.begin(f"{name}: epochs", total=asked.of["epochs"])
            lines[name] = measured.run(
                method,
                problem,
                optimum=best,
                settings=settings,
                epochs=asked.of["epochs"],
                sent=reduce,
                advance=phases.advance,
            )
        return Found(lines, minima, parity, prepared.facts, tuple(x.numpy() for x in prepared.shown))


def _reduction(mesh: Mesh) -> CountedReduction:
    if mesh.layout.dp == 1:
        return CountedReduction(keep, ranks=1, backend="gloo")
    return CountedReduction(mesh.all_reduce("dp"), ranks=mesh.layout.dp, backend=dist.get_backend(mesh.group("dp")))


def _parity(method: Method, problem: Problem, settings: Settings) -> float:
    """Return the largest difference from one process on any rank."""
    mine = measured.difference_from_one_process(method, problem, settings=settings, iterates=PARITY_ITERATES)
    largest = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()


# --- the problems


def _logistic(asked: Asked, work: Work, mesh: Mesh, reduce: CountedReduction, advance: Advance) -> Prepared:
    images, labels = _images(work)
    config, l2 = work.model_config, asked.of["l2"]
    assert isinstance(config, ImageConfig)
    problem = SoftmaxRegression(
        centred(images), labels, config.n_classes, l2, rank=mesh.rank("dp"), ranks=mesh.layout.dp, reduce=reduce
    )
    best = optimum.of_softmax(problem, advance)
    features, smoothness, numbers = problem.features.shape[1], problem.smoothness, problem.start().numel()
    held = _gib(hessian_bytes(config.n_classes, features))
    condition = f"{smoothness / l2:,.0f}" if l2 else "infinite"
    facts = (
        f"logistic {work.size}: {len(images):,} images, {config.n_classes} x {features} weights, l2 {l2:g}, fp64",
        f"L = {smoothness:.4g}, of one sample {problem.sample_smoothness:.4g}; mu = {l2:g}; condition {condition}",
        f"minimum {best.value:.12f}, norm of its gradient {problem.gradient_norm(best.point):.1e}",
        f"Hessian {numbers:,} x {numbers:,}: {held} with its factor, in each process",
    )
    return Prepared(facts, lambda method: (problem, best))


def _check_hessian(work: Work, nproc: int) -> None:
    """Refuse a Hessian that does not fit: the minimum is found by Newton's method, whichever are measured.

    Raises: WorldError where the processes alone do not, ConfigError.
    """
    check_processes_fit(nproc)
    config, free = work.model_config, memory_available_bytes()
    assert isinstance(config, LogisticConfig)
    n_features = config.n_features + 1  # and a one, for the bias
    needed, numbers = hessian_bytes(config.n_classes, n_features), config.n_classes * n_features
    if nproc * needed > free:
        raise ConfigError(
            f"the Hessian of {numbers:,} x {numbers:,} numbers, by which the minimum is found, takes {_gib(needed)} "
            f"with its factor in each of {nproc:,} processes, and {_gib(free)} are free: use a smaller --size or "
            "--nproc"
        )


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:.2g} GiB"


def _images(work: Work) -> tuple[Tensor, Tensor]:
    """Return all training images (n, channels, size, size) and labels (n,)."""
    dataset = work.dataset()
    every = np.arange(dataset.n_samples)
    batch = dataset.collate(every, positions=every, seed=0)
    return batch.inputs[0], batch.targets


def _signal(asked: Asked, work: Work, mesh: Mesh, reduce: CountedReduction, advance: Advance) -> Prepared:
    clean = signals.piecewise_constant(asked.of["samples"], seed=asked.seed)
    return _denoising(asked, clean, f"a signal of {clean.shape[1]} values", mesh, reduce, advance)


def _pictures(asked: Asked, work: Work, mesh: Mesh, reduce: CountedReduction, advance: Advance) -> Prepared:
    images = _images(work)[0][: asked.of["samples"], 0].double()
    what = f"{len(images)} images of {images.shape[1]} x {images.shape[2]} pixels"
    return _denoising(asked, images, what, mesh, reduce, advance)


def _denoising(
    asked: Asked, clean: Tensor, what: str, mesh: Mesh, reduce: CountedReduction, advance: Advance
) -> Prepared:
    noisy = signals.with_noise(clean, std=asked.of["noise_std"], seed=asked.seed)
    names, weight = asked.of["transform"], asked.of["l1"] if asked.of["transform"] else asked.of["tv"]
    penalty = penalties.coefficients(names, clean.shape[1:]) if names else penalties.total_variation(clean.dim() - 1)
    primal = Denoising(noisy, weight, penalty, rank=mesh.rank("dp"), ranks=mesh.layout.dp, reduce=reduce)
    dual = primal.dual()
    best_dual = optimum.of_dual(dual, advance)
    best = optimum.of_primal(primal, best_dual)
    gap = best.value + best_dual.value - primal.mean(primal.noisy.square()) / 2
    error = primal.mean((best.point - clean[primal.mine]).square()) / clean[0].numel()
    facts = (
        f"{what}, noise {asked.of['noise_std']:g}, {penalty.name} {weight:g}, fp64",
        f"L of the dual = {dual.smoothness:g}, mu = 1"
        + (", one step leads to its minimum" if penalty.orthonormal else ""),
        f"minimum {best.value:.12f}, duality gap {gap:.1e}",
        f"mean squared error {(noisy - clean).square().mean():.4f} noisy, {error:.4f} denoised",
    )
    shown = (clean[primal.mine][:8], primal.noisy[:8], best.point[:8])

    def of(method: Method) -> tuple[Problem, Optimum]:
        return (primal, best) if method.name == "subgradient" else (dual, best_dual)

    return Prepared(facts, of, shown)


PROBLEMS: Mapping[str, Callable[[Asked, Work, Mesh, CountedReduction, Advance], Prepared]] = {
    "logistic": _logistic,
    "signal": _signal,
    "images": _pictures,
}
