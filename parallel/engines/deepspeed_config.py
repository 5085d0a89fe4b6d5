"""Read a DeepSpeed configuration file, complete it from the run, and refuse it where the two disagree.

DeepSpeed itself ignores keys it does not know (`zero_optimisation` trains with stage 0), and lets a file overrule
the command line. Here every key is known (`deepspeed_keys`), and every value that the run decides is the run's: a
file may leave it out, say "auto", or say the same.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paralab.axes.context import Planned
from paralab.engines.deepspeed_keys import (
    KEYS,
    OPTIMIZER_PARAMS,
    SCHEDULER_PARAMS,
    Decided,
    Handed,
    LeftOut,
    Off,
    Rule,
)
from paralab.errors import ConfigError, did_you_mean
from paralab.options.choices import LrSchedule, Precision
from paralab.options.config import RunConfig
from paralab.options.files import given_elsewhere, load

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Elements of a bucket where there is no file: 25 MiB in fp32, as torch's DistributedDataParallel has (bucket_cap_mb).
# DeepSpeed's own default of 5e8 elements is 2 GB on every rank.
BUCKET_ELEMENTS = 25 * 2**20 // 4
DEFAULTS: dict[str, Any] = {
    "zero_optimization": dict.fromkeys(
        ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"), BUCKET_ELEMENTS
    )
}

_AUTO = "auto"
_BF16_NOTE = "bf16 is run as torch_autocast: the weights stay fp32"
_DECAYS = ("adamw", "adam", "torchadam")  # names of AdamW in DeepSpeed's files
_SCHEDULES: Mapping[str, LrSchedule] = {"WarmupLR": "constant", "WarmupCosineLR": "cosine"}


def read(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file. Imports nothing of DeepSpeed.

    Raises: ConfigError for a key at any depth that has no meaning, and for one that would change the step.
    """
    values = load(path)
    _check_keys(values, KEYS, where="", source=str(path))
    return values


def of_run(work: Planned, path: str | Path | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run, from a file or `DEFAULTS`, and what the run decides.

    Raises: ConfigError for a file that cannot be used, or that says something else than the run.
    """
    # A pipeline runs under stage 1: at stage 0 DeepSpeed clips by the norm of the first stage alone. Where a stage
    # has one rank only, both are the same.
    stage = 1 if work.layout.pp > 1 else work.layout.zero
    return fill(read(path) if path else DEFAULTS, work, stage=stage, source=str(path))


def fill(values: Mapping[str, Any], work: Planned, *, stage: int, source: str = "") -> dict[str, Any]:
    """Return the configuration of a run: what a file holds, with what the run decides.

    stage: of ZeRO, that the layout stands for. source: the file's name, for messages.
    Raises: ConfigError where the file holds another value than the run.
    """
    run, division = work.run, work.division
    _check_precision(values, run, source=source)
    _check_batch(values, work, source=source)
    _check_optimizer(values.get("optimizer"), run, source=source)
    _check_scheduler(values.get("scheduler"), run, source=source)
    zero = _section(values, "zero_optimization")
    if _says_otherwise(zero, "stage", stage):
        named = f"zero{zero['stage']}" if zero["stage"] else "ddp"
        raise _contradiction("zero_optimization.stage", zero["stage"], source, stage, f"type --strategy {named}")
    handed = _handed(values, KEYS)
    return {
        **handed,
        "train_batch_size": division.global_batch_size,
        "train_micro_batch_size_per_gpu": division.micro_batch_size,
        "gradient_accumulation_steps": division.chunks,
        "gradient_clipping": run.clip_norm or 0.0,
        "zero_optimization": {**_section(handed, "zero_optimization"), **_auto_buckets(zero, work), "stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's SGD is not on its list
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also runs on offloaded states, and needs no compiler
        **_arithmetic(run.precision),
    }


def notes(values: Mapping[str, Any], source: str) -> Iterator[str]:
    """Yield what to know about keys that are switched on in a file and do nothing, or something else, here."""
    for key, rule in KEYS.items():
        if isinstance(rule, LeftOut) and rule.note and _is_on(values.get(key), rule):
            yield f"{key} in {source} is left out: {rule.note}"
    if any(_enabled(values, key) is True for key in ("bf16", "bfloat16")):
        yield f"{source}: {_BF16_NOTE}"


def validate(values: Mapping[str, Any], source: str) -> None:
    """Let DeepSpeed check the values of a filled configuration. Raises: ConfigError for one of the wrong kind."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**values["zero_optimization"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("zero_optimization", *first["loc"]))
        raise ConfigError(f"{key} in {source} is {_text(first['input'])}: {first['msg']}") from error


def offloaded(values: Mapping[str, Any]) -> str:
    """Return what a configuration keeps in the memory of the host: none, optimizer, parameters, or both by a +."""
    zero = _section(values, "zero_optimization")
    parts = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
    there = [name for name, key in parts.items() if _section(zero, key).get("device", "none") not in ("none", _AUTO)]
    return "+".join(there) or "none"


def unreadable(zero: Mapping[str, Any]) -> str | None:
    """Return a setting of ZeRO under which DeepSpeed does not hand out whole optimizer states, or None."""
    if zero.get("round_robin_gradients") not in (None, False, _AUTO):
        return "round_robin_gradients"
    ratio = _section(zero, "offload_optimizer").get("ratio", 1.0)
    return "ratio" if ratio not in (1.0, _AUTO) else None


def _check_keys(values: Mapping[str, Any], rules: Mapping[str, Rule], *, where: str, source: str) -> None:
    for key, value in values.items():
        if key not in rules:
            if not where and "zero_optimization" not in values and (elsewhere := given_elsewhere(values, source)):
                raise ConfigError(f"key {key!r} in {source} is unknown{elsewhere}")
            place = f"of {where} in {source}" if where else f"in {source}"
            raise ConfigError(f"key {key!r} {place} is unknown{did_you_mean(key, rules)}: correct or remove it")
        rule, path = rules[key], f"{where}.{key}" if where else key
        if key == "enabled" and value not in (True, False, None, _AUTO):
            raise ConfigError(f"{path} in {source} is {_text(value)}: true or false is needed")
        names = rule.keys
        if not names:
            pass
        elif isinstance(value, Mapping):
            inner = rule.keys if isinstance(rule, Handed) else dict.fromkeys(names, LeftOut())
            _check_keys(value, inner, where=path, source=source)
        elif value not in (None, False, _AUTO):
            raise ConfigError(f"{path} in {source} is {_text(value)}: a section with keys is needed")
        if isinstance(rule, Off) and _is_on(value, rule):
            raise ConfigError(f"{path} in {source} is {_text(value)}, which is not supported: {rule.instead}")
        only = rule.only if isinstance(rule, (Handed, Decided)) else ()
        if only and (isinstance(value, bool) or value not in (None, _AUTO, *only)):
            able = ", ".join(map(_text, only))
            raise ConfigError(f"{path} in {source} is {_text(value)}, which is not supported: use one of {able}")


def _is_on(value: Any, rule: Off | LeftOut) -> bool:
    """Return whether a value or a section does anything: by its `enabled`, at any depth, where it has one."""
    if isinstance(value, Mapping):
        switches = list(_switches(value))
        return any(_is_on(inner, rule) for inner in (switches or ("enabled" not in rule.keys) * list(value.values())))
    unless = rule.unless if isinstance(rule, Off) else ()
    return value not in (None, False, _AUTO, 0, "", *unless)


def _switches(section: Mapping[str, Any]) -> Iterator[Any]:
    if "enabled" in section:
        yield section["enabled"]
        return
    for value in section.values():
        if isinstance(value, Mapping):
            yield from _switches(value)


def _handed(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the part of a file that DeepSpeed gets."""
    handed: dict[str, Any] = {}
    for key, value in values.items():
        rule = rules[key]
        if value == _AUTO:
            continue
        if isinstance(rule, Handed):
            section = rule.keys and isinstance(value, Mapping)
            handed[key] = _handed(value, rule.keys) if section else value
    return handed


def _auto_buckets(zero: Mapping[str, Any], work: Planned) -> dict[str, Any]:
    """Return what stands for "auto" in three sizes: what Hugging Face's integration writes, from the model's width.

    Source: `HfTrainerDeepSpeedConfig.trainer_config_finalize` of transformers. A model without one width gets ours.
    """
    width = getattr(work.model_config, "hidden", None)
    sizes = {
        "reduce_bucket_size": width * width if width else BUCKET_ELEMENTS,
        "stage3_prefetch_bucket_size": int(0.9 * width * width) if width else BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": 10 * width if width else 100_000,  # DeepSpeed's default
    }
    return {key: size for key, size in sizes.items() if zero.get(key) == _AUTO}


def _arithmetic(precision: Precision) -> dict[str, Any]:
    if precision not in PRECISIONS:
        # Under `torch_autocast` in fp16 it clips by the norm of the scaled gradient, and nothing is trained in fp64.
        raise ConfigError(f"--precision {precision} with DeepSpeed: use {' or '.join(PRECISIONS)}, or --engine torch")
    if precision == "fp32":
        return {}
    # `bf16: enabled` would round the weights as well, and trains wrongly at stage 0.
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def _check_precision(values: Mapping[str, Any], run: RunConfig, *, source: str) -> None:
    if _enabled(values, "fp16") is True:
        raise ConfigError(
            f"fp16.enabled is true in {source}, which DeepSpeed trains wrongly with torch's optimizer: set it to "
            '"auto" or false and type --precision bf16, or type --engine torch --precision fp16 without the file'
        )
    for key in ("bf16", "bfloat16", "torch_autocast"):
        said = _enabled(values, key)
        if said is not None and said != (run.precision == "bf16"):
            other = "bf16" if said else "fp32"
            raise _contradiction(
                f"{key}.enabled", said, source, f"--precision {run.precision}", f"type --precision {other}"
            )
    dtype = _section(values, "torch_autocast").get("dtype", _AUTO)
    if dtype not in (_AUTO, "bfloat16", "bf16"):
        raise ConfigError(f'torch_autocast.dtype is {_text(dtype)} in {source}: "bfloat16" is needed, set it to "auto"')


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a section, empty where it is not there or "auto" (`_check_keys` refuses what else it may be)."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _params(section: Mapping[str, Any], known: Iterable[str], *, where: str, source: str) -> Mapping[str, Any]:
    """Return the section `params` of a section. Raises: ConfigError where it is none, or has a key that is unknown."""
    rules = {"type": LeftOut(), "legacy_fusion": LeftOut(), "params": LeftOut(keys=frozenset(known))}
    _check_keys(section, rules, where=where, source=source)
    return _section(section, "params")


def _enabled(values: Mapping[str, Any], key: str) -> bool | None:
    """Return what a section of a precision says, None where it says nothing or "auto"."""
    said = _section(values, key).get("enabled", _AUTO)
    return None if said == _AUTO else bool(said)


def _check_batch(values: Mapping[str, Any], work: Planned, *, source: str) -> None:
    """Raise ConfigError, with all the options to type, where batch sizes or clipping are not the run's."""
    division, dp = work.division, work.layout.dp
    decided = {
        "train_batch_size": division.global_batch_size,
        "train_micro_batch_size_per_gpu": division.micro_batch_size,
        "gradient_accumulation_steps": division.chunks,
        "gradient_clipping": work.run.clip_norm or 0.0,
    }
    differ = [key for key, value in decided.items() if _says_otherwise(values, key, value)]
    if not differ:
        return
    for key in differ:
        if type(values[key]) not in (int, float) or not 0 <= values[key] < math.inf:
            raise ConfigError(f'{key} is {_text(values[key])} in {source}: a number is needed, or "auto"')
    whole, micro, chunks, clip = (None if values.get(key) == _AUTO else values.get(key) for key in decided)
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
    got = ", ".join(f"{key} {_text(values[key])}" for key in differ)
    need = ", ".join(f"{decided[key]:g}" for key in differ)
    typed = " ".join(words)
    raise ConfigError(f'{source} says {got}, this run has {need}: type {typed}, or write "auto" in the file')


def _check_optimizer(section: Mapping[str, Any] | str | None, run: RunConfig, *, source: str) -> None:
    if not isinstance(section, Mapping):
        return
    params = _params(section, OPTIMIZER_PARAMS, where="optimizer", source=source)
    kind = str(section.get("type", _AUTO)).lower()
    decays = kind in _DECAYS and params.get("adam_w_mode", True) in (True, _AUTO)
    name = "adamw" if decays else "sgd" if kind == "sgd" else run.optimizer if kind == _AUTO else None
    if name is None:
        raise ConfigError(
            f"optimizer.type is {_text(section['type'])} in {source}, and AdamW and SGD are what there is: use one of "
            "these, or remove the section"
        )
    if name != run.optimizer:
        raise _contradiction(
            "optimizer.type", section["type"], source, f"--optimizer {run.optimizer}", f"type --optimizer {name}"
        )
    decided: dict[str, Any] = {"lr": run.learning_rate, "weight_decay": run.weight_decay}
    decided |= {"betas": list(run.betas), "eps": run.eps} if name == "adamw" else {"momentum": run.momentum}
    flags = {key: f"--{key.replace('_', '-')}" for key in decided} | {"lr": "--learning-rate"}
    decided |= {"amsgrad": False, "bias_correction": True}
    _check_params(params, decided, flags, where="optimizer.params", source=source)


def _check_scheduler(section: Mapping[str, Any] | str | None, run: RunConfig, *, source: str) -> None:
    if not isinstance(section, Mapping) or section.get("type", _AUTO) == _AUTO:
        return
    kind, params = str(section["type"]), _params(section, SCHEDULER_PARAMS, where="scheduler", source=source)
    if kind not in _SCHEDULES:
        raise ConfigError(
            f"scheduler.type is {_text(section['type'])} in {source}, and the learning rate here is constant "
            "(WarmupLR) or a cosine (WarmupCosineLR) after its warm-up: use one of these, or remove the section"
        )
    if _SCHEDULES[kind] != run.lr_schedule:
        said = f"--lr-schedule {run.lr_schedule}"
        raise _contradiction("scheduler.type", kind, source, said, f"type --lr-schedule {_SCHEDULES[kind]}")
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
        if _says_otherwise(params, key, value):
            got = params[key]
            typed = ",".join(str(part) for part in got) if isinstance(got, list) else got
            can_type = key in flags and not isinstance(got, bool)
            advice = f"type {flags[key]} {typed}" if can_type else f"set it to {_text(value)}"
            raise _contradiction(f"{where}.{key}", got, source, value, advice)


def _says_otherwise(values: Mapping[str, Any], key: str, value: Any) -> bool:
    """Return whether a file has another value than the run. A switch is no number: false is not 0."""
    got = values.get(key, _AUTO)
    if isinstance(got, bool) and not isinstance(value, bool):
        return True
    return got not in (_AUTO, None, value)


def _contradiction(key: str, got: Any, source: str, need: Any, advice: str) -> ConfigError:
    need = need if isinstance(need, str) else _text(need)
    return ConfigError(f'{key} is {_text(got)} in {source}, this run has {need}: {advice}, or set it to "auto"')


def _text(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
