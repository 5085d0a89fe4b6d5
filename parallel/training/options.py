"""The options of a training run, presets for known tasks, and where the files of a run lie."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paralab.options.config import RunConfig, changed
from paralab.options.option import MODEL, STEPS, option
from paralab.records.log_files import TRAINING_ROWS
from paralab.training import sinks

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "alice": {
        "model": "gpt2",
        "size": "nano",
        "data": "alice",
        "steps": 300,
        "global_batch_size": 16,
        "learning_rate": 2e-3,
        "lr_warmup_steps": 30,
        "eval_every": 25,
        "early_stop": 3,
        "save_every": 100,
    },
    "gpt2-124m": {  # add --data NAME, a Hugging Face text set
        "model": "gpt2",
        "size": "124m",
        "precision": "bf16",
        "steps": 20_000,
        "global_batch_size": 480,
        "accumulation": 5,
        "learning_rate": 6e-4,
        "lr_warmup_steps": 700,
        "eval_every": 500,
        "eval_samples": 1000,
        "save_every": 1000,
    },
    "mnist": {
        "model": "resnet",
        "size": "20",
        "data": "mnist",
        "steps": 1000,
        "global_batch_size": 64,
        "learning_rate": 4e-3,
        "weight_decay": 0.05,
        "lr_warmup_steps": 30,
        "min_lr_ratio": 0.01,
        "eval_every": 100,
        "save_every": 100,
    },
    "points": {
        "model": "diffusion",
        "size": "points",
        "data": "two_moons",
        "steps": 2000,
        "global_batch_size": 512,
        "learning_rate": 2e-3,
        "weight_decay": 0.0,
        "lr_warmup_steps": 100,
        "min_lr_ratio": 0.01,
        "log_every": 100,
        "eval_every": 500,
        "save_every": 1000,
    },
    "dit-mnist": {
        "model": "diffusion",
        "size": "dit-mnist",
        "data": "mnist",
        "steps": 5000,
        "global_batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "lr_warmup_steps": 200,
        "min_lr_ratio": 0.01,
        "eval_every": 500,
        "eval_samples": 500,
        "save_every": 500,
    },
}
IN_FOLDER = "in the folder"  # what a bare --resume stands for
SET_ASIDE = "set-aside"  # in the folder of logs: steps of an earlier start that were taken again


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A training run."""

    preset: str | None = option(
        None,
        f"Options of a known task: {', '.join(PRESETS)}; other flags and the file override them",
        group=MODEL,
        unset="none",
    )
    nproc: int | None = changed("nproc", None, unset="those of the launcher; one per GPU; 1 on a CPU")
    steps: int = changed("steps", 1000, help="Number of optimizer steps, warm-up not counted")
    epochs: int | None = option(
        None,
        "Train until each sample of the data was taken this many times, in place of --steps; warm-up is counted",
        group=STEPS,
        at_least=1,
        unset="as many as --steps are",
    )
    warmup: int = changed("warmup", 0, help="Number of further steps at the start, which the log marks as not measured")
    out: str | None = option(
        None,
        "Folder of the run, which takes its logs, checkpoints and results",
        group=STEPS,
        metavar="DIR",
        unset="runs/MODEL-SIZE",
    )
    resume: str | None = option(
        None,
        "Continue from this checkpoint, or without PATH from the newest one in --out",
        group=STEPS,
        metavar="[PATH]",
        unset="start at step 0",
    )
    init_from: str | None = option(
        None,
        "Start from these weights: a Hugging Face folder (whose sizes the model takes), one of paralab export "
        "or a checkpoint, or nanoGPT's ckpt.pt",
        group=STEPS,
        metavar="DIR",
        unset="random weights",
    )
    trust: bool = option(
        False,
        "Read --init-from although its files can run any program with your rights (ckpt.pt), or although its folder "
        "brings Python code, which is not run",
        group=STEPS,
    )
    save_every: int = option(200, "Save a checkpoint every this many steps", group=STEPS, at_least=1)
    keep_last: int = option(
        3,
        "Number of checkpoints to keep: the newest ones; the best one and those of --save-at-epochs are kept as well",
        group=STEPS,
        at_least=1,
    )
    save_at_epochs: list[int] | None = option(
        None,
        "Also save a checkpoint after these epochs, counted from 1, and keep it whatever comes later",
        group=STEPS,
        at_least=1,
        metavar="N,N",
        unset="none",
    )
    log_every: int = option(10, "Print and log metrics every this many steps", group=STEPS, at_least=1)
    layer_stats_every: int | None = option(
        None,
        "Log the root mean square of each parameter, of its gradient and of its update every this many steps, and "
        "send them to --log-to layer by layer; paralab plot --layers and paralab report draw them",
        group=STEPS,
        at_least=1,
        unset="off",
    )
    eval_every: int = option(100, "Evaluate on held-out data every this many steps", group=STEPS, at_least=1)
    eval_samples: int | None = option(
        None, "Evaluate on at most this many held-out samples, the first ones", group=STEPS, at_least=1, unset="all"
    )
    early_stop: int | None = option(
        None,
        "Stop after this many evaluations in a row without a better loss",
        group=STEPS,
        at_least=1,
        unset="train to the last step",
    )
    log_to: list[str] | None = option(
        None,
        "Also send metrics to tensorboard, trackio, or both",
        group=STEPS,
        choices=tuple(sinks.SINKS),
        metavar="NAME,NAME",
        unset="neither",
    )
    profile_step: int | None = option(
        None, "Write a torch.profiler trace of this step", group=STEPS, at_least=0, unset="no trace"
    )

    @property
    def goes_on(self) -> bool:
        """Whether an earlier run goes on."""
        return self.resume is not None


def rows_file(folder: str | os.PathLike) -> Path:
    return Path(folder) / TRAINING_ROWS


def log_file(folder: str | os.PathLike, rank: int) -> Path:
    return Path(folder) / "log" / f"rank{rank}.jsonl"


def usage_file(folder: str | os.PathLike, rank: int) -> Path:
    """Return where a rank keeps what its steps used: apart from its log, which has a line for each step."""
    return Path(folder) / "log" / f"usage-rank{rank}.jsonl"


def config_file(folder: str | os.PathLike) -> Path:
    return Path(folder) / "config.toml"
