"""Checks before a training run starts its processes: checkpoints, output files and engines."""

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.errors import ConfigError, did_you_mean
from paralab.training import epochs, sinks
from paralab.training.options import IN_FOLDER, TrainConfig, config_file, log_file, rows_file

if TYPE_CHECKING:  # they import torch: `--help` and the first line do not wait for it
    from paralab.planning.work import Work
    from paralab.processes.rank import Rank


def check(work: "Work") -> None:
    """Refuse what is known to fail before processes are started."""
    from paralab.running import task

    run = work.run
    assert isinstance(run, TrainConfig) and run.out is not None
    if run.engine != "torch":
        _check_engine(work)
        if run.layer_stats_every is not None:
            raise ConfigError(
                f"--layer-stats-every with --engine {run.engine}, which keeps gradients and updates to itself: leave "
                "it out, or use --engine torch"
            )
    _check_approximate(work)
    sinks.check(run.log_to or ())
    _check_checkpoints(run)
    _check_outputs(Path(run.out), goes_on=run.resume is not None)
    task.check(work, "train", "validation")
    from paralab import checkpoint
    from paralab.training.evaluate import count_samples

    count_samples(work, work.dataset("validation"), most_samples=run.eval_samples)

    if run.resume is not None:
        checkpoint.check_same_work(run.out if run.resume == IN_FOLDER else run.resume, work)


def check_resume(run: TrainConfig, rank: "Rank") -> None:
    """Raise ConfigError where there is no checkpoint to go on from."""
    from paralab import checkpoint

    if run.resume not in (None, IN_FOLDER):
        _check_resumable(Path(run.resume or ""))
    # the first of several starts finds nothing
    elif run.resume == IN_FOLDER and not rank.starts_again and not checkpoint.latest(run.out or ""):
        raise ConfigError(
            f"--resume: {_without_checkpoint(Path(run.out or ''))}: give --out what it was trained in, or leave "
            "--resume out to start at step 0"
        )


def _check_checkpoints(run: TrainConfig) -> None:
    """Refuse a folder that has checkpoints where none is requested, or newer ones, which would come to be replaced."""
    from paralab import checkpoint

    there = checkpoint.checkpoints(Path(run.out or ""))
    for path in there:
        checkpoint.check_format(path)
    if there and run.resume is None:
        raise ConfigError(f"{run.out} has {there[0].name} already: add --resume to go on, or give another --out")


def _check_resumable(path: Path) -> None:
    """Refuse a --resume PATH that is no checkpoint, and no folder of a run that has one."""
    from paralab import checkpoint

    folder = path if checkpoint.is_checkpoint(path) else checkpoint.latest(path)
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"--resume {path}: {_without_checkpoint(path)}: give one such as RUN/step-200, or the folder of a run"
        )
    checkpoint.check_format(folder)


def _without_checkpoint(path: Path) -> str:
    """Say that there is no checkpoint at a path, and what beside it has one and may be meant."""
    from paralab import checkpoint
    from paralab.checkpoint.others import written_by_another

    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    others = [
        each.name
        for each in beside
        if each.is_dir() and each != path and (checkpoint.is_checkpoint(each) or checkpoint.latest(each))
    ]
    if checkpoint.is_checkpoint(path) and not path.exists() and others:
        return f"there is no {path}, {path.parent} has {', '.join(sorted(others, key=_by_number))}"
    if what := written_by_another(path):
        return f"{path} is {what}, and no checkpoint of paralab (--init-from starts from weights of other programs)"
    meant = did_you_mean(path.name, others)
    if not meant and len(others) == 1:
        meant = f" (did you mean {others[0]}?)"
    what = "does not exist" if not path.exists() else "has no checkpoint" if path.is_dir() else "is not a folder"
    return f"{path} {what}{meant.replace('mean ', f'mean {path.parent}/') if path.parent != Path() else meant}"


def _by_number(name: str) -> tuple[int, str]:
    return len(name), name


def _check_outputs(folder: Path, *, goes_on: bool) -> None:
    """Refuse what could not be written to, or gone on with, after the work is done."""
    from paralab.checkpoint.folder import LATEST
    from paralab.records.log import read_log
    from paralab.records.writing import check_appendable

    rows, log = rows_file(folder), log_file(folder, 0)
    check_appendable(rows, otherwise="")
    if log.parent.exists() and not log.parent.is_dir():
        raise ConfigError(f"{log.parent} is a file, and the logs of the ranks go there: move it away")
    for file in (log, folder / "validation.jsonl", folder / "progress.json", folder / LATEST, config_file(folder)):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise ConfigError(f"{file} cannot be written: move it away, or give another --out")
    if goes_on and log.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a line that was not finished: it is set aside
            read_log(log)


def _check_approximate(work: "Work") -> None:
    """Refuse what would evaluate, save or continue ranks that are apart from each other."""
    run, local = work.run, work.layout.local
    assert isinstance(run, TrainConfig)
    keeps = f"layout {work.layout}" if local else "--grad-compression powersgd"
    if run.resume is not None and (local or run.grad_compression == "powersgd"):
        raise ConfigError(
            f"--resume with {keeps}: what its ranks keep from step to step is not in a checkpoint, start anew from the "
            "weights with --init-from"
        )
    for name, every in (("eval-every", run.eval_every), ("save-every", run.save_every)):
        if local and every % local:
            raise ConfigError(
                f"--{name} {every} with layout {work.layout}: between its meetings ranks differ, use a multiple of "
                f"{local}, such as --{name} {-(-every // local) * local}"
            )
    if local and (run.steps + run.warmup) % local:
        total = -(-(run.steps + run.warmup) // local) * local
        instead = "" if run.epochs is None else f" in place of --epochs {run.epochs}"
        raise ConfigError(
            f"{run.steps + run.warmup} steps with layout {work.layout}: the last ones would end between its meetings, "
            f"use --steps {total - run.warmup}{instead}"
        )
    for step, epoch in epochs.saved_at(work).items():
        if local and step % local:
            raise ConfigError(
                f"--save-at-epochs {epoch} with layout {work.layout}: epoch {epoch} is over after step {step}, between "
                f"its meetings, where ranks differ; use --save-every {local}, or a multiple of it"
            )


def _check_engine(work: "Work") -> None:
    """Refuse an engine whose state has no way into a checkpoint."""
    run, pp = work.run, work.layout.pp
    if run.engine != "deepspeed" or pp > 1:
        what = "DeepSpeed's pipelines" if pp > 1 else "Accelerate"
        raise ConfigError(
            f"paralab train with --engine {run.engine}, layout {work.layout}: the states of {what} cannot be saved in "
            "its checkpoints, use --engine torch, or --engine deepspeed with --strategy ddp, zero1, zero2 or zero3"
        )
    if run.ds_config is None:
        return
    from paralab.engines import deepspeed_config

    zero = deepspeed_config.read(run.ds_config).get("zero_optimization", {})
    if unreadable := deepspeed_config.unreadable(zero):
        raise ConfigError(
            f"{unreadable} of zero_optimization in {run.ds_config}: optimizer states kept so cannot be saved in the "
            "checkpoints of paralab train, remove it, or use --engine torch"
        )
