"""A DeepSpeed configuration: read from a file, filled from the run, refused where the two disagree.

DeepSpeed itself ignores keys it does not know (`zero_optimisation` trains with stage 0), and lets a file overrule
the command line. Here every key is known and every value that the run decides is the run's.
"""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from parallel.config import load
from parallel.errors import ConfigError, did_you_mean
from parallel.spec import BuildContext

PRECISIONS = ("fp32", "bf16")

# Handed to DeepSpeed as they are. Sections with a model of their own are checked at every depth.
_VALUES = ("communication_data_type", "wall_clock_breakdown", "memory_breakdown", "dump_state")
_SECTIONS = ("zero_optimization", "comms_logger", "aio")
# What the run decides, and the flag that does.
_FLAGS = {
    "train_batch_size": "--global-batch-size",
    "train_micro_batch_size_per_gpu": "--global-batch-size and --accumulation",
    "gradient_accumulation_steps": "--accumulation (micro-batches in a pipeline)",
    "gradient_clipping": "--clip-norm",
    "stage": "--strategy",
}
_ELSEWHERE = {
    "optimizer": "--optimizer, --learning-rate, --betas, --weight-decay",
    "scheduler": "--lr-schedule and --lr-warmup-steps",
    "fp16": "--precision fp16 --engine torch",
    "bf16": "--precision bf16",
    "torch_autocast": "--precision bf16",
    "activation_checkpointing": "--checkpointing",
    "compile": "--compile",
    "tensor_parallel": "--engine torch --strategy tensor",
    "zero_force_ds_cpu_optimizer": "--optimizer: it is torch's, also where its states are offloaded",
}


def read(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file. Raises: ConfigError for a key at any depth that has no meaning here."""
    values = load(path)
    for key in values:
        if key in _ELSEWHERE:
            raise ConfigError(f"{key!r} in {path} is not DeepSpeed's to decide: remove it, and use {_ELSEWHERE[key]}")
        known = (*_VALUES, *_SECTIONS, *(name for name in _FLAGS if name != "stage"))
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(f"key {key!r} in {path} is unknown{hint}: use some of {', '.join(known)}")
    for section, model in _models().items():
        if section in values:
            _check_section(values[section], model, where=f"{section} in {path}")
    return values


def fill(values: Mapping[str, Any], context: BuildContext, *, stage: int, source: str = "") -> dict[str, Any]:
    """Return the configuration of a run: what a file holds, with what the run decides.

    stage: of ZeRO, that the layout stands for. source: the file's name, for messages.
    Raises: ConfigError where the file holds another value than the run.
    """
    run, division = context.run, context.division
    decided = {
        "train_batch_size": division.global_batch_size,
        "train_micro_batch_size_per_gpu": division.micro_batch_size,
        "gradient_accumulation_steps": division.chunks,
        "gradient_clipping": run.clip_norm or 0.0,
    }
    _agree(values, decided, source=source)
    zero = values.get("zero_optimization", {})
    _agree(zero, {"stage": stage}, source=source)
    return {
        **values,
        **decided,
        "zero_optimization": {**zero, "stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's SGD is not on its list
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW also runs on offloaded states, and needs no compiler
        **_arithmetic(run.precision),
    }


def offloaded(values: Mapping[str, Any]) -> str:
    """Return what a configuration keeps in the memory of the host: none, optimizer, parameters, or both by a +."""
    zero = values.get("zero_optimization") or {}
    parts = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
    there = [name for name, key in parts.items() if (zero.get(key) or {}).get("device", "none") != "none"]
    return "+".join(there) or "none"


def unreadable(zero: Mapping[str, Any]) -> str | None:
    """Return a setting of ZeRO under which DeepSpeed does not hand out whole optimizer states, or None."""
    for key in ("zenflow", "round_robin_gradients"):
        if zero.get(key):
            return key
    offload = {key: zero.get(key) or {} for key in ("offload_optimizer", "offload_param")}
    if any(part.get("device") == "nvme" for part in offload.values()):
        return "device nvme"
    return "ratio" if offload["offload_optimizer"].get("ratio", 1.0) != 1.0 else None


def _arithmetic(precision: str) -> dict[str, Any]:
    if precision not in PRECISIONS:
        # Under `torch_autocast` in fp16 it clips by the norm of the scaled gradient, and nothing is trained in fp64.
        raise ConfigError(f"--precision {precision} with DeepSpeed: use {' or '.join(PRECISIONS)}, or --engine torch")
    if precision == "fp32":
        return {}
    # `bf16: enabled` would round the weights as well, and trains wrongly at stage 0.
    return {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}


def _agree(values: Mapping[str, Any], decided: Mapping[str, Any], *, source: str) -> None:
    for key, value in decided.items():
        if values.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"{key} is {values[key]} in {source} and {value} in this run: remove it from the file, "
                f"or change {_FLAGS[key]}"
            )


def _models() -> dict[str, type[BaseModel]]:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {"zero_optimization": DeepSpeedZeroConfig, "comms_logger": CommsLoggerConfig}


def _check_section(values: Any, model: type[BaseModel], *, where: str) -> None:
    """Raise ConfigError unless a section has known keys only, at any depth, with values of the right kind."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}: a section with keys is needed")
    fields = dict(model.model_fields)
    fields |= {field.alias: field for field in model.model_fields.values() if field.alias}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"key {key!r} of {where} is unknown{did_you_mean(key, fields)}")
        for inner in _models_in(fields[key].annotation):
            if isinstance(value, Mapping):
                _check_section(value, inner, where=f"{key} of {where}")
    try:
        model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{key or 'a value'} of {where} is not allowed: {first['msg']}") from error


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
