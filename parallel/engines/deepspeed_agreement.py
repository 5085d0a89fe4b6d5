"""Refuse a DeepSpeed file where it says something else than the run."""

import math
from collections.abc import Mapping
from typing import Any

from paralab.axes.context import Planned
from paralab.engines.deepspeed_keys import (
    OPTIMIZER_PARAMS,
    SCHEDULER_PARAMS,
)
from paralab.engines.deepspeed_sections import AUTO, enabled, params_of, section_of, text
from paralab.errors import ConfigError
from paralab.options.choices import LrSchedule
from paralab.options.config import RunConfig

_DECAYS = ("adamw", "adam", "torchadam")  # names of AdamW in DeepSpeed's files
_SCHEDULES: Mapping[str, LrSchedule] = {"WarmupLR": "constant", "WarmupCosineLR": "cosine"}


def check_precision(values: Mapping[str, Any], run: RunConfig, *, source: str) -> None:
    """Raise ConfigError where a file switches a precision on or off that the run has otherwise."""
    if enabled(values, "fp16") is True:
        raise ConfigError(
            f"fp16.enabled is true in {source}, which DeepSpeed trains wrongly with torch's optimizer: set it to "
            '"auto" or false and type --precision bf16, or type --engine torch --precision fp16 without the file'
        )
    for key in ("bf16", "bfloat16", "torch_autocast"):
        said = enabled(values, key)
        if said is not None and said != (run.precision == "bf16"):
            other = "bf16" if said else "fp32"
            raise contradiction(
                f"{key}.enabled", said, source, f"--precision {run.precision}", f"type --precision {other}"
            )
    dtype = section_of(values, "torch_autocast").get("dtype", AUTO)
    if dtype not in (AUTO, "bfloat16", "bf16"):
        raise ConfigError(f'torch_autocast.dtype is {text(dtype)} in {source}: "bfloat16" is needed, set it to "auto"')


def check_batch(values: Mapping[str, Any], work: Planned, *, source: str) -> None:
    """Raise ConfigError, with all the options to type, where batch sizes or clipping are not the run's."""
    division, dp = work.division, work.layout.dp
    decided = {
        "train_batch_size": division.global_batch_size,
        "train_micro_batch_size_per_gpu": division.micro_batch_size,
        "gradient_accumulation_steps": division.chunks,
        "gradient_clipping": work.run.clip_norm or 0.0,
    }
    differ = [key for key, value in decided.items() if says_otherwise(values, key, value)]
    if not differ:
        return
    for key in differ:
        if type(values[key]) not in (int, float) or not 0 <= values[key] < math.inf:
            raise ConfigError(f'{key} is {text(values[key])} in {source}: a number is needed, or "auto"')
    whole, micro, chunks, clip = (None if values.get(key) == AUTO else values.get(key) for key in decided)
    steps = chunks or division.chunks
    if whole and micro and whole != micro * steps * dp:
        raise ConfigError(
            f"train_batch_size {whole} in {source} is not train_micro_batch_size_per_gpu {micro} x {steps} accumulated "
            f'x {dp} data ranks: start another number of processes, or set one of them to "auto"'
        )
    words = []
    if "gradient_accumulation_steps" in differ:
        words += [f"--accumulation {chunks}" if work.layout.pp == 1 else f"--layout with /mb{chunks}"]
    if "train_batch_size" in differ or "train_micro_batch_size_per_gpu" in differ:
        words += [f"--global-batch-size {whole or (micro or division.micro_batch_size) * steps * dp}"]
    if "gradient_clipping" in differ:
        words += [f"--clip-norm {clip or 'none'}"]
    got = ", ".join(f"{key} {text(values[key])}" for key in differ)
    need = ", ".join(f"{decided[key]:g}" for key in differ)
    typed = " ".join(words)
    raise ConfigError(f'{source} says {got}, this run has {need}: type {typed}, or write "auto" in the file')


def check_optimizer(section: Mapping[str, Any] | str | None, run: RunConfig, *, source: str) -> None:
    """Raise ConfigError where a file has another optimizer than the run, or other settings of it."""
    if not isinstance(section, Mapping):
        return
    params = params_of(section, OPTIMIZER_PARAMS, where="optimizer", source=source)
    kind = str(section.get("type", AUTO)).lower()
    decays = kind in _DECAYS and params.get("adam_w_mode", True) in (True, AUTO)
    name = "adamw" if decays else "sgd" if kind == "sgd" else run.optimizer if kind == AUTO else None
    if name is None:
        raise ConfigError(
            f"optimizer.type is {text(section['type'])} in {source}, and AdamW and SGD are what there is: use one of "
            "these, or remove the section"
        )
    if name != run.optimizer:
        raise contradiction(
            "optimizer.type", section["type"], source, f"--optimizer {run.optimizer}", f"type --optimizer {name}"
        )
    decided: dict[str, Any] = {"lr": run.learning_rate, "weight_decay": run.weight_decay}
    decided |= {"betas": list(run.betas), "eps": run.eps} if name == "adamw" else {"momentum": run.momentum}
    flags = {key: f"--{key.replace('_', '-')}" for key in decided} | {"lr": "--learning-rate"}
    decided |= {"amsgrad": False, "bias_correction": True}
    _check_params(params, decided, flags, where="optimizer.params", source=source)


def check_scheduler(section: Mapping[str, Any] | str | None, run: RunConfig, *, source: str) -> None:
    """Raise ConfigError where a file has another schedule of the learning rate than the run."""
    if not isinstance(section, Mapping) or section.get("type", AUTO) == AUTO:
        return
    kind, params = str(section["type"]), params_of(section, SCHEDULER_PARAMS, where="scheduler", source=source)
    if kind not in _SCHEDULES:
        raise ConfigError(
            f"scheduler.type is {text(section['type'])} in {source}, and the learning rate here is constant "
            "(WarmupLR) or a cosine (WarmupCosineLR) after its warm-up: use one of these, or remove the section"
        )
    if _SCHEDULES[kind] != run.lr_schedule:
        said = f"--lr-schedule {run.lr_schedule}"
        raise contradiction("scheduler.type", kind, source, said, f"type --lr-schedule {_SCHEDULES[kind]}")
    decided: dict[str, Any] = {
        "warmup_max_lr": run.learning_rate,
        "warmup_num_steps": run.lr_warmup_steps,
        "total_num_steps": run.steps + run.warmup,
        "cos_min_ratio": run.min_lr_ratio,
    }
    if run.lr_warmup_steps:
        decided |= {"warmup_min_lr": 0, "warmup_min_ratio": 0, "warmup_type": "linear"}
    flags = {
        "warmup_max_lr": "--learning-rate",
        "warmup_num_steps": "--lr-warmup-steps",
        "total_num_steps": "--steps and --warmup that add up to",
        "cos_min_ratio": "--min-lr-ratio",
    }
    _check_params(params, decided, flags, where="scheduler.params", source=source)


def _check_params(
    params: Mapping[str, Any], decided: Mapping[str, Any], flags: Mapping[str, str], *, where: str, source: str
) -> None:
    for key, value in decided.items():
        if says_otherwise(params, key, value):
            got = params[key]
            typed = ",".join(str(part) for part in got) if isinstance(got, list) else got
            can_type = key in flags and not isinstance(got, bool)
            advice = f"type {flags[key]} {typed}" if can_type else f"set it to {text(value)}"
            raise contradiction(f"{where}.{key}", got, source, value, advice)


def says_otherwise(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Return whether a file has another value than the run. A switch is no number: false is not 0."""
    got = values.get(key, AUTO)
    if isinstance(got, bool) and not isinstance(value, bool):
        return True
    return got not in (AUTO, None, value)


def contradiction(key: str, got: Any, source: str, need: Any, advice: str) -> ConfigError:
    """Return the error of a value that the run has otherwise. advice: what to type to have the file's."""
    need = need if isinstance(need, str) else text(need)
    return ConfigError(f'{key} is {text(got)} in {source}, this run has {need}: {advice}, or set it to "auto"')
