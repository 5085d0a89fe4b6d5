"""The options of a training run, presets for known tasks, and where the files of a run lie."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.options.config import RunConfig, option
from parallel.training import sinks

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

    preset: str | None = option(None, "values for a known task; other options go over them", group="work")
    steps: int = option(1000, "optimizer steps, warm-up not counted", group="steps", at_least=1)
    warmup: int = option(0, "further steps at the start, marked in the log as not measured", group="steps", at_least=0)
    out: str | None = option(None, "folder of the run (default: runs/MODEL-SIZE)", group="steps", metavar="DIR")
    resume: str | None = option(
        None, "go on from this checkpoint; without PATH from the newest in --out", group="steps", metavar="[PATH]"
    )
    init_from: str | None = option(
        None,
        "start with the weights of a Hugging Face GPT-2, whose sizes the model takes, of paralab export, of a "
        "checkpoint, or of nanoGPT's ckpt.pt",
        group="steps",
        metavar="DIR",
    )
    trust: bool = option(
        False,
        "read the weights of --init-from even where that can run any program with your rights (ckpt.pt), or where "
        "their folder brings Python of its own, which is not run",
        group="steps",
    )
    save_every: int = option(200, "steps between checkpoints", group="steps", at_least=1)
    keep_last: int = option(3, "checkpoints kept, besides the best one", group="steps", at_least=1)
    log_every: int = option(10, "steps between lines of metrics", group="steps", at_least=1)
    eval_every: int = option(100, "steps between evaluations on held-out data", group="steps", at_least=1)
    eval_samples: int | None = option(None, "held-out samples used, the first ones", group="steps", at_least=1)
    early_stop: int | None = option(
        None, "end after so many evaluations in a row without a better loss", group="steps", at_least=1
    )
    log_to: list[str] | None = option(
        None,
        "send metrics there as well: tensorboard, trackio, or both",
        group="steps",
        choices=tuple(sinks.SINKS),
        metavar="NAME,NAME",
    )
    profile_step: int | None = option(None, "write a torch.profiler trace of this step", group="steps", at_least=0)


def rows_file(folder: str | os.PathLike) -> Path:
    return Path(folder) / "runs.csv"


def log_file(folder: str | os.PathLike, rank: int) -> Path:
    return Path(folder) / "log" / f"rank{rank}.jsonl"


def config_file(folder: str | os.PathLike) -> Path:
    return Path(folder) / "config.toml"
