"""What a DeepSpeed file may say. DeepSpeed itself is the reference for its keys; the files are what people use."""

import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import BaseModel

from paralab.axes.context import BuildContext
from paralab.engines import deepspeed_config
from paralab.engines.deepspeed_keys import KEYS, Decided, Handed, LeftOut, Off
from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.models.gpt2 import GPT2Config
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "ds_configs"
FP16 = {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16, "hysteresis": 2}
ADAM = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
WARM_UP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
BATCH = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
ZERO2 = {
    "stage": 2,
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 2e8,
    "contiguous_gradients": True,
}
ZERO3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
ON_CPU = {"device": "cpu", "pin_memory": True}


def context(layout: str, **changes: Any) -> BuildContext:
    run = RunConfig(size="tiny", layout=Layout.parse(layout), global_batch_size=16, **changes)
    work = resolve(run)
    return work.context(Mesh(work.layout, torch.device("cpu")))


def read(folder: Path, values: Mapping[str, Any], layout: str = "dp2/zero2", **changes: Any) -> dict[str, Any]:
    """Return what DeepSpeed is given for a file and a run, checked by DeepSpeed."""
    path = folder / "ds.json"
    path.write_text(json.dumps(values))
    filled = deepspeed_config.of_run(context(layout, **changes), path)
    deepspeed_config.validate(filled, str(path))
    return filled


CONSTANT = {"lr_schedule": "constant"}
TAKEN: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "bare stage": ({"zero_optimization": {"stage": 2}}, "dp2/zero2", {}),
    "transformers zero2": (
        {
            "fp16": FP16 | {"min_loss_scale": 1},
            "optimizer": {"type": "AdamW", "params": ADAM},
            "scheduler": {"type": "WarmupLR", "params": WARM_UP},
            "zero_optimization": ZERO2 | {"offload_optimizer": ON_CPU},
            **BATCH,
            "steps_per_print": 2000,
            "wall_clock_breakdown": False,
        },
        "dp2/zero2",
        CONSTANT,
    ),
    "transformers zero3": (
        {
            "fp16": FP16,
            "bf16": {"enabled": "auto"},
            "optimizer": {"type": "AdamW", "params": ADAM},
            "zero_optimization": ZERO3 | {"offload_optimizer": ON_CPU, "offload_param": ON_CPU},
            **BATCH,
            "steps_per_print": 10,
            "wall_clock_breakdown": False,
        },
        "dp2/zero3",
        {},
    ),
    "zero1 with bf16 on": (
        {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}, **BATCH},
        "dp2/zero1",
        {"precision": "bf16"},
    ),
    "both precisions off": (
        {"fp16": {"enabled": False}, "bf16": {"enabled": False}, "zero_optimization": {"stage": 2}},
        "dp2/zero2",
        {},
    ),
    "batch in full": (
        {
            "train_batch_size": 16,
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 2},
        },
        "dp2/zero2",
        {"accumulation": 2},
    ),
    "optimizer in full": (
        {
            "optimizer": {
                "type": "Adam",
                "params": {"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "torch_adam": True},
            },
            "zero_optimization": {"stage": 1},
        },
        "dp2/zero1",
        {},
    ),
    "sgd": (
        {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}, "zero_optimization": {"stage": 1}},
        "dp2/zero1",
        {"optimizer": "sgd", "learning_rate": 0.1},
    ),
    "cosine in full": (
        {
            "scheduler": {
                "type": "WarmupCosineLR",
                "params": {"total_num_steps": 23, "warmup_num_steps": 0, "cos_min_ratio": 0.1},
            },
            "zero_optimization": {"stage": 1},
        },
        "dp2/zero1",
        {},
    ),
    "megatron": (
        {
            "train_micro_batch_size_per_gpu": 8,
            "steps_per_print": 1,
            "zero_optimization": {"stage": 1, "elastic_checkpoint": True, "round_robin_gradients": True},
            "gradient_clipping": 1.0,
            "prescale_gradients": False,
            "fp16": {"enabled": False, "loss_scale": 0, "loss_scale_window": 500, "hysteresis": 2},
            "bf16": {"enabled": True},
            "curriculum_learning": {"enabled": False, "curriculum_type": "seqlen", "min_difficulty": 8},
            "wall_clock_breakdown": True,
        },
        "dp2/zero1",
        {"precision": "bf16"},
    ),
    "everything off": (
        {
            "zero_optimization": {
                "stage": 3,
                "mics_shard_size": -1,
                "zero_hpz_partition_size": 1,
                "zero_quantized_weights": False,
                "offload_param": {"device": "none"},
                "offload_optimizer": {"device": "none", "nvme_path": "/local_nvme", "buffer_count": 4},
            },
            "tensorboard": {"enabled": False, "output_path": "logs", "job_name": "x"},
            "wandb": {"enabled": False},
            "csv_monitor": {"enabled": False},
            "comms_logger": {"enabled": False, "verbose": False, "prof_all": True, "debug": False},
            "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1, "detailed": True},
            "elasticity": {"enabled": False, "max_train_batch_size": 2000, "micro_batch_sizes": [2, 4]},
            "autotuning": {"enabled": False},
            "amp": {"enabled": False, "opt_level": "O1"},
            "compression_training": {"weight_quantization": {"shared_parameters": {"enabled": False}}},
            "data_efficiency": {"enabled": False, "data_sampling": {"curriculum_learning": {"enabled": False}}},
            "progressive_layer_drop": {"enabled": False, "theta": 0.5},
            "hybrid_engine": {"enabled": False, "max_out_tokens": 512},
            "sparse_gradients": False,
            "zero_allow_untested_optimizer": True,
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "memory_breakdown": False,
            "dump_state": False,
        },
        "dp2/zero3",
        {},
    ),
    "activation checkpointing": (
        {
            "zero_optimization": ZERO2,
            "activation_checkpointing": {
                "partition_activations": True,
                "cpu_checkpointing": True,
                "contiguous_memory_optimization": False,
                "number_checkpoints": None,
                "synchronize_checkpoint_boundary": False,
                "profile": False,
            },
        },
        "dp2/zero2",
        {},
    ),
    "disk queue": (
        {
            "zero_optimization": {"stage": 3, "load_from_fp32_weights": False},
            "aio": {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True},
            "checkpoint": {"tag_validation": "Warn", "use_node_local_storage": True},
        },
        "dp2/zero3",
        {},
    ),
    "every size auto": (
        {
            "zero_optimization": {
                "stage": "auto",
                "overlap_comm": "auto",
                "allgather_bucket_size": "auto",
                "reduce_bucket_size": "auto",
                "offload_optimizer": {"device": "auto"},
            }
        },
        "dp2/zero2",
        {},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_files_that_change_nothing_in_the_step_are_taken(name: str, tmp_path: Path) -> None:
    values, layout, changes = TAKEN[name]
    filled = read(tmp_path, values, layout, **changes)
    assert filled["zero_optimization"]["stage"] == Layout.parse(layout).zero
    assert "auto" not in set(_leaves(filled))
    assert filled.keys() <= {
        *("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
        *("gradient_clipping", "torch_autocast", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    }


def _leaves(values: Any) -> Iterator[Any]:
    for value in values.values() if isinstance(values, Mapping) else [values]:
        yield from _leaves(value) if isinstance(value, Mapping) else [str(value)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimisation": {"stage": 3}}, r"'zero_optimisation' in .*did you mean zero_optimization\?"),
        ({"zero_optimization": {"stge": 3}}, r"'stge' of zero_optimization.*did you mean stage\?"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            r"'devise' of zero_optimization.offload_optimizer.*did you mean device\?",
        ),
        ({"bf16": {"enabled": "false"}}, r'bf16.enabled in .* is "false": true or false is needed'),
        ({"tensorboard": {"enabled": 2}}, r"tensorboard.enabled in .* is 2: true or false is needed"),
        ({"tensorboard": {"enable": False}}, r"'enable' of tensorboard.*did you mean enabled\?"),
        ({"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}}, "'learning_rate' of optimizer.params"),
        ({"steps_per_prnt": 5}, r"did you mean steps_per_print\?"),
        ({"distributed_type": "FSDP"}, "a file of Accelerate's, type accelerate launch --config_file"),
        ({"zero_optimization": {"offload_param": {"device": "gpu"}}}, 'device .* is "gpu".*use one of "none", "cpu"'),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, 'is "nvme".*use one of "none", "cpu"'),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage .* is 4.*use one of 0, 1, 2, 3"),
        ({"zero_optimization": True}, "a section with keys is needed"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage .* is true.*use one of 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": False}}, "zero_optimization.stage .* is false.*use one of 0, 1, 2, 3"),
        ({"gradient_accumulation_steps": True}, "gradient_accumulation_steps is true .*a number is needed"),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": False}}},
            "warmup_num_steps is false .* 0: set it to 0,",
        ),
        ({"gradient_clipping": float("nan")}, "gradient_clipping is NaN .*a number is needed"),
        ({"train_batch_size": -1}, "train_batch_size is -1 .*a number is needed"),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, 'zero_optimization.reduce_bucket_size .* is "big"'),
        ({"zero_optimization": {"cpu_offload": True}}, 'cpu_offload .*"offload_optimizer": {"device": "cpu"}'),
        ({"zero_optimization": {"zero_hpz_partition_size": 2}}, "zero_hpz_partition_size .* is 2"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "zero_quantized_gradients"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true .*--precision bf16"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true .*--precision fp32: type --precision bf16"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled is true .*type --precision bf16"),
        ({"optimizer": {"type": "OneBitAdam"}}, 'optimizer.type is "OneBitAdam".*AdamW and SGD'),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type is "Lamb"'),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "AdamW and SGD are what there is"),
        ({"optimizer": {"type": "SGD"}}, "--optimizer adamw: type --optimizer sgd"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 3e-5}}}, "lr is 3e-05 .* 0.0006: type --learning-rate 3e-05"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.999]}}}, "type --betas 0.9,0.999"),
        ({"scheduler": {"type": "WarmupDecayLR", "params": WARM_UP}}, 'scheduler.type is "WarmupDecayLR"'),
        ({"scheduler": {"type": "WarmupLR", "params": WARM_UP}}, "type --lr-schedule constant"),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 100}}},
            "warmup_num_steps is 100 .* 0: type --lr-warmup-steps 100",
        ),
        ({"train_batch_size": 32}, "train_batch_size 32, this run has 16: type --global-batch-size 32"),
        ({"train_micro_batch_size_per_gpu": 1}, "type --global-batch-size 2,"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 4, this run has 1: type --accumulation 4"),
        (
            {"train_batch_size": 64, "gradient_accumulation_steps": 4, "gradient_clipping": 0.5},
            "this run has 16, 1, 1: type --accumulation 4 --global-batch-size 64 --clip-norm 0.5,",
        ),
        ({"gradient_clipping": 0}, "type --clip-norm none"),
        (
            {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1},
            "64 in .* is not train_micro_batch_size_per_gpu 4 x 1 accumulated x 2 data ranks",
        ),
        ({"train_batch_size": "16"}, 'train_batch_size is "16" .* a number is needed'),
        ({"zero_optimization": {"stage": 3}}, "stage is 3 .* this run has 2: type --strategy zero3"),
        ({"zero_optimization": {"stage": 0}}, "stage is 0 .* this run has 2: type --strategy ddp"),
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning .*which is not supported"),
        (
            {"compression_training": {"weight_quantization": {"shared_parameters": {"enabled": True}}}},
            "compression_training .*which is not supported",
        ),
        ({"sparse_attention": {"mode": "fixed", "block": 16}}, "sparse_attention"),
        ({"elasticity": {"enabled": True}}, 'elasticity .*set "enabled" to false'),
        ({"communication_data_type": "fp16"}, "communication_data_type .*gradients are summed in fp32"),
        ({"amp": {"enabled": True}}, "amp .*--precision bf16"),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op .*set it to "mean"'),
    ],
)
def test_a_file_that_would_change_the_step_is_refused(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, values)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    values = {
        "wall_clock_breakdown": True,
        "tensorboard": {"enabled": True, "output_path": "logs"},
        "flops_profiler": {"enabled": False, "profile_step": 1},
        "wandb": {"project": "mine"},
        "activation_checkpointing": {"partition_activations": True},
        "bf16": {"enabled": True},
        "steps_per_print": 10,
    }
    said = list(deepspeed_config.notes(values, "ds.json"))
    assert [line.split()[0] for line in said] == [
        "wall_clock_breakdown",
        "tensorboard",
        "activation_checkpointing",
        "ds.json:",
    ]
    assert "--checkpointing full" in said[2]


def test_auto_sizes_are_those_of_the_hugging_face_integration(tmp_path: Path) -> None:
    zero = read(tmp_path, {"zero_optimization": ZERO3}, "dp2/zero3")["zero_optimization"]
    width = cast(GPT2Config, context("dp2/zero3").model_config).hidden
    assert zero["reduce_bucket_size"] == width**2
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * width**2)
    assert zero["stage3_param_persistence_threshold"] == 10 * width


def test_without_a_file_buckets_are_those_of_ddp() -> None:
    zero = deepspeed_config.of_run(context("dp2/zero3"), None)["zero_optimization"]
    assert zero["reduce_bucket_size"] * 4 == 25 * 2**20
    assert zero["stage"] == 3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_leave_the_batch_to_the_run(path: Path) -> None:
    values = deepspeed_config.read(path)
    assert values.keys() == {"zero_optimization"}
    assert values["zero_optimization"]["reduce_bucket_size"] <= 25_000_000


def test_batch_sizes_come_from_the_run_as_deepspeed_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    values = {"train_batch_size": "auto", "gradient_accumulation_steps": 2, "zero_optimization": ZERO2}
    filled = read(tmp_path, values, "dp4/zero2", accumulation=2, clip_norm=0.5)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda: 4)
    config = DeepSpeedConfig(filled)
    assert (config.train_batch_size, config.train_micro_batch_size_per_gpu) == (16, 2)
    assert (config.gradient_accumulation_steps, config.gradient_clipping) == (2, 0.5)
    assert (config.zero_optimization_stage, config.zero_config.reduce_bucket_size) == (2, 200_000_000)
    assert not config.torch_autocast_enabled


def _models(model: type[BaseModel], where: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the names of a section of DeepSpeed, aliases too, and those of the sections inside it."""
    known = {field.alias for field in model.model_fields.values() if field.alias}
    yield where, known | model.model_fields.keys()
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _models(kind, f"{where}.{name}")


def test_every_key_of_deepspeed_has_a_meaning() -> None:
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    sections = {
        "zero_optimization": DeepSpeedZeroConfig,
        "comms_logger": CommsLoggerConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "hybrid_engine": HybridEngineConfig,
        **{name: field.annotation for name, field in DeepSpeedMonitorConfig.model_fields.items() if name in KEYS},
    }
    missing = set()
    for section, model in sections.items():
        for where, names in _models(model, section):
            rule: Any = KEYS
            for part in where.split("."):
                rule = (rule if isinstance(rule, dict) else rule.keys)[part]
                if isinstance(rule, Off):
                    break
            if not isinstance(rule, Off) or rule.keys:
                missing |= {f"{where}.{name}" for name in names - set(rule.keys)}
    assert not missing


def test_the_documentation_lists_every_key() -> None:
    rows = {
        cells[0]: set(re.findall(r"`([a-z0-9_]+)`", cells[1]))
        for line in (ROOT / "docs" / "launchers.md").read_text().splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 2 and line.startswith("|")
    }
    kinds = {"used": Handed, "ignored": LeftOut, "must agree with the run": Decided, "refused if switched on": Off}
    for name, kind in kinds.items():
        assert rows[name] == {key for key, rule in KEYS.items() if isinstance(rule, kind)}, name


def test_a_value_of_another_kind_is_taken_or_refused_in_one_line(tmp_path: Path) -> None:
    work, path = context("dp2/zero2"), tmp_path / "ds.json"
    inner = [("optimizer", "type"), ("optimizer", "params"), ("scheduler", "type"), ("scheduler", "params")]
    inner += [(key, "enabled") for key in ("fp16", "bf16", "torch_autocast")]
    for keys in [*((key,) for key in KEYS), ("zero_optimization", "stage"), *inner]:
        for value in (None, "auto", True, 4, [1], {"a": 1}):
            values = {keys[0]: {keys[1]: value} if len(keys) > 1 else value}
            path.write_text(json.dumps(values))
            try:
                deepspeed_config.of_run(work, path)
                assert deepspeed_config.offloaded(values) == "none"
            except ConfigError as error:
                assert keys[-1] in str(error) and "True" not in str(error)
