"""Epochs in steps: how many steps a run takes to go over its data so many times, and where each epoch ends.

Samples follow each other without a gap from epoch to epoch, so that an epoch may end within a step: it is over after
the step that takes its last sample.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.errors import ConfigError
from paralab.options.arguments import MOST
from paralab.training.options import TrainConfig

if TYPE_CHECKING:  # it imports torch: `--help` does not wait for it
    from paralab.planning.work import Work


def end_of(epoch: int, *, samples: int, batch: int) -> int:
    """Return the number of steps after which an epoch, counted from 1, is over.

    samples: in the training data. batch: samples in a step.
    """
    return -(-epoch * samples // batch)


def with_steps(work: "Work", *, steps_given: bool) -> "Work":
    """Return the work with as many steps as its epochs take, warm-up included; without epochs as it is.

    steps_given: whether a number of steps was requested as well. Opens the data.
    Raises: ConfigError where both were requested and differ, and for a checkpoint at an epoch beyond the run.
    """
    run = work.run
    assert isinstance(run, TrainConfig)
    if run.epochs is None and run.save_at_epochs is None:
        return work
    samples, batch = work.dataset().n_samples, work.division.global_batch_size
    if run.epochs is not None:
        steps = end_of(run.epochs, samples=samples, batch=batch) - run.warmup
        taken = f"{run.epochs} epochs of {samples:,} samples are {steps + run.warmup:,} steps of {batch}"
        if steps < 1:
            raise ConfigError(f"--epochs {run.epochs} with --warmup {run.warmup}: {taken}, use --warmup 0")
        if steps > MOST:
            raise ConfigError(f"--epochs {run.epochs} is too many: {taken}, use a smaller number")
        if steps_given and steps != run.steps:
            less = f" less {run.warmup} of warm-up" if run.warmup else ""
            raise ConfigError(
                f"--steps {run.steps} with --epochs {run.epochs}: {taken}{less}, use --steps {steps} or leave one out"
            )
        run = replace(run, steps=steps)
    _check_saved(run, samples=samples, batch=batch)
    return replace(work, run=run)


def _check_saved(run: TrainConfig, *, samples: int, batch: int) -> None:
    """Refuse a checkpoint at an epoch that ends after the run."""
    total, last = run.steps + run.warmup, max(run.save_at_epochs or (0,))
    if end_of(last, samples=samples, batch=batch) <= total:
        return
    whole = total * batch // samples
    use = f"use --save-at-epochs {whole} or earlier" if whole else "leave it out"
    raise ConfigError(
        f"--save-at-epochs {last} in a run of {total:,} steps, {total * batch / samples:.3g} epochs of {samples:,} "
        f"samples: {use}, or --epochs {last}"
    )


def saved_at(work: "Work") -> dict[int, int]:
    """Return the steps after which a checkpoint is kept because an epoch is over, and which epoch each is."""
    run = work.run
    assert isinstance(run, TrainConfig)
    if run.save_at_epochs is None:
        return {}
    samples, batch = work.dataset().n_samples, work.division.global_batch_size
    return {end_of(epoch, samples=samples, batch=batch): epoch for epoch in sorted(run.save_at_epochs)}


def missed(saved: Mapping[int, int], *, start: int, folder: Path) -> list[int]:
    """Return the epochs that were over when a run went on at step `start`, and have no checkpoint in its folder."""
    return [epoch for step, epoch in saved.items() if step <= start and not (folder / f"step-{step}").is_dir()]


def taken(work: "Work", steps: int) -> float:
    """Return how often so many steps go over the training data: samples taken over samples there are."""
    return steps * work.division.global_batch_size / work.dataset().n_samples
