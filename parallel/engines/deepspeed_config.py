"""Read a DeepSpeed configuration file, and complete it from the run.

DeepSpeed itself ignores keys it does not know (`zero_optimisation` trains with stage 0), and lets a file overrule
the command line. Here every key is known (`deepspeed_keys`), and every value that the run decides is the run's: a
file may leave it out, say "auto", or say the same.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paralab.axes.context import Planned
from paralab.engines.deepspeed_agreement import (
    check_batch,
    check_optimizer,
    check_precision,
    check_scheduler,
    contradiction,
    says_otherwise,
)
from paralab.engines.deepspeed_keys import (
    KEYS,
    Handed,
    LeftOut,
    Rule,
)
from paralab.engines.deepspeed_sections import AUTO, check_keys, enabled, is_on, section_of, text
from paralab.errors import ConfigError
from paralab.options.choices import Precision
from paralab.options.files import load

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
# Elements of a bucket where there is no file: 25 MiB in fp32, as torch's DistributedDataParallel has (bucket_cap_mb).
# DeepSpeed's own default of 5e8 elements is 2 GB on every rank.
BUCKET_ELEMENTS = 25 * 2**20 // 4
DEFAULTS: dict[str, Any] = {
    "zero_optimization": dict.fromkeys(
        ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"), BUCKET_ELEMENTS
    )
}

_BF16_NOTE = "bf16 is run as torch_autocast: the weights stay fp32"


def read(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file. Imports nothing of DeepSpeed.

    Raises: ConfigError for a key at any depth that has no meaning, and for one that would change the step.
    """
    values = load(path)
    check_keys(values, KEYS, where="", source=str(path))
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
    check_precision(values, run, source=source)
    check_batch(values, work, source=source)
    check_optimizer(values.get("optimizer"), run, source=source)
    check_scheduler(values.get("scheduler"), run, source=source)
    zero = section_of(values, "zero_optimization")
    if says_otherwise(zero, "stage", stage):
        named = f"zero{zero['stage']}" if zero["stage"] else "ddp"
        raise contradiction("zero_optimization.stage", zero["stage"], source, stage, f"type --strategy {named}")
    handed = _handed(values, KEYS)
    return {
        **handed,
        "train_batch_size": division.global_batch_size,
        "train_micro_batch_size_per_gpu": division.micro_batch_size,
        "gradient_accumulation_steps": division.chunks,
        "gradient_clipping": run.clip_norm or 0.0,
        "zero_optimization": {**section_of(handed, "zero_optimization"), **_auto_buckets(zero, work), "stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's SGD is not on its list
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also runs on offloaded states, and needs no compiler
        **_arithmetic(run.precision),
    }


def notes(values: Mapping[str, Any], source: str) -> Iterator[str]:
    """Yield what to know about keys that are switched on in a file and do nothing, or something else, here."""
    for key, rule in KEYS.items():
        if isinstance(rule, LeftOut) and rule.note and is_on(values.get(key), rule):
            yield f"{key} in {source} is left out: {rule.note}"
    if any(enabled(values, key) is True for key in ("bf16", "bfloat16")):
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
        raise ConfigError(f"{key} in {source} is {text(first['input'])}: {first['msg']}") from error


def offloaded(values: Mapping[str, Any]) -> str:
    """Return what a configuration keeps in the memory of the host: none, optimizer, parameters, or both by a +."""
    zero = section_of(values, "zero_optimization")
    parts = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
    there = [name for name, key in parts.items() if section_of(zero, key).get("device", "none") not in ("none", AUTO)]
    return "+".join(there) or "none"


def unreadable(zero: Mapping[str, Any]) -> str | None:
    """Return a setting of ZeRO under which DeepSpeed does not hand out whole optimizer states, or None."""
    if zero.get("round_robin_gradients") not in (None, False, AUTO):
        return "round_robin_gradients"
    ratio = section_of(zero, "offload_optimizer").get("ratio", 1.0)
    return "ratio" if ratio not in (1.0, AUTO) else None


def _handed(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the part of a file that DeepSpeed gets."""
    handed: dict[str, Any] = {}
    for key, value in values.items():
        rule = rules[key]
        if value == AUTO:
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
    return {key: size for key, size in sizes.items() if zero.get(key) == AUTO}


def _arithmetic(precision: Precision) -> dict[str, Any]:
    if precision not in PRECISIONS:
        # Under `torch_autocast` in fp16 it clips by the norm of the scaled gradient, and nothing is trained in fp64.
        raise ConfigError(f"--precision {precision} with DeepSpeed: use {' or '.join(PRECISIONS)}, or --engine torch")
    if precision == "fp32":
        return {}
    # `bf16: enabled` would round the weights as well, and trains wrongly at stage 0.
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
