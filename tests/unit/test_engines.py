"""Which engine runs a layout, and what a DeepSpeed file may say. DeepSpeed itself is the reference for its keys."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from parallel import engines
from parallel.cluster import Mesh
from parallel.config import RunConfig
from parallel.engines import deepspeed_config
from parallel.engines.accelerate import kind_of
from parallel.errors import ConfigError, LayoutError
from parallel.layout import Layout
from parallel.resolve import resolve
from parallel.spec import BuildContext

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def context(layout: str, **changes: Any) -> BuildContext:
    run = RunConfig(size="tiny", layout=Layout.parse(layout), global_batch_size=16, **changes)
    work = resolve(run)
    return work.context(Mesh(work.layout, torch.device("cpu")))


def written(path: Path, values: dict) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("launcher", "layout", "precision", "ds_config", "chosen"),
    [
        ("python", "dp2", "fp32", None, "torch"),
        ("torchrun", "dp2/zero3", "fp32", None, "torch"),
        ("torchrun", "dp2/zero3", "fp32", "zero3.json", "deepspeed"),
        ("slurm", "dp2", "bf16", None, "torch"),
        ("deepspeed", "dp2/zero3", "bf16", None, "deepspeed"),
        ("deepspeed", "pp2/mb4", "fp32", None, "deepspeed"),
        ("deepspeed", "tp2", "fp32", None, "torch"),
        ("deepspeed", "pp2/gpipe/mb4", "fp32", None, "torch"),
        ("deepspeed", "dp2", "fp64", None, "torch"),
        ("deepspeed", "dp1", "fp32", None, "torch"),
        ("accelerate", "dp2", "fp64", None, "accelerate"),
        ("accelerate", "dp2/zero1", "fp32", "zero1.json", "accelerate"),
        ("accelerate", "pp2/mb4", "fp32", None, "torch"),
    ],
)
def test_auto_follows_the_launcher_where_its_engine_is_able(
    launcher: str, layout: str, precision: str, ds_config: str | None, chosen: str
) -> None:
    got = engines.choose(
        "auto", launcher=launcher, layout=Layout.parse(layout), precision=precision, ds_config=ds_config
    )
    assert got == chosen


@pytest.mark.parametrize("engine", ["deepspeed", "accelerate"])
@pytest.mark.parametrize("layout", ["tp2", "dp2.tp2", "pp2/gpipe/mb4", "dp2.pp2/mb4", "dp2.pp2/zero2/mb4", "dp1"])
def test_an_engine_asked_for_names_what_it_can(engine: str, layout: str) -> None:
    with pytest.raises(LayoutError, match=rf"--engine {engine} cannot run layout .* it runs ddp.*--engine torch"):
        engines.choose(engine, launcher="torchrun", layout=Layout.parse(layout), precision="fp32")


def test_a_precision_that_trains_wrongly_is_refused() -> None:
    with pytest.raises(ConfigError, match="--engine deepspeed does not run --precision fp16: use fp32 or bf16"):
        engines.choose("deepspeed", launcher="torchrun", layout=Layout(dp=2), precision="fp16")


def test_a_deepspeed_file_is_nothing_to_torch() -> None:
    with pytest.raises(ConfigError, match="--engine deepspeed"):
        engines.build(context("dp2"), "torch", ds_config="zero1.json")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_files_are_valid_and_leave_the_batch_to_the_run(path: Path) -> None:
    assert deepspeed_config.read(path).keys() == {"zero_optimization"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimisation": {"stage": 3}}, r"'zero_optimisation'.*did you mean zero_optimization\?"),
        ({"zero_optimization": {"stge": 3}}, r"'stge' of zero_optimization.*did you mean stage\?"),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            r"'devise' of offload_optimizer of zero_optimization.*did you mean device\?",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "gpu"}}},
            "device of offload_param of zero_optimization",
        ),
        ({"zero_optimization": {"stage": 4}}, "stage of zero_optimization"),
        ({"zero_optimization": True}, "a section with keys is needed"),
        ({"bf16": {"enabled": True}}, "'bf16'.*remove it, and use --precision bf16"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer'.*--learning-rate"),
        ({"gradient_allreduce_op": "sum"}, "'gradient_allreduce_op'.*is unknown"),
    ],
)
def test_keys_are_known_at_every_depth(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepspeed_config.read(written(tmp_path / "ds.json", values))


def test_batch_sizes_come_from_the_run_as_deepspeed_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    here = context("dp4/zero2", accumulation=2, clip_norm=0.5)
    values = {"train_batch_size": "auto", "gradient_accumulation_steps": 2}
    filled = deepspeed_config.fill(values, here, stage=2)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)
    monkeypatch.setattr("deepspeed.comm.get_world_size", lambda: 4)
    read = DeepSpeedConfig(filled)
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (16, 2, 2)
    assert (read.zero_optimization_stage, read.gradient_clipping) == (2, 0.5)
    assert not read.torch_autocast_enabled


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 32}, "train_batch_size is 32 in ds.json and 16 in this run.*--global-batch-size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5 .* 1.0 .*--clip-norm"),
        ({"zero_optimization": {"stage": 3}}, "stage is 3 in ds.json and 2 in this run.*--strategy"),
    ],
)
def test_contradictions_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deepspeed_config.fill(values, context("dp2/zero2"), stage=2, source="ds.json")


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


@pytest.mark.parametrize(
    ("env", "layout", "config", "kind"),
    [
        ({}, "dp2", None, "ddp"),
        ({}, "dp2/zero2", None, "fsdp"),
        ({}, "dp2/zero2", "zero2.json", "deepspeed"),
        (FSDP, "dp2/zero3", None, "fsdp"),
        (DEEPSPEED, "dp2/zero2", None, "deepspeed"),
        ({"ACCELERATE_USE_FSDP": "false"}, "dp2", None, "ddp"),
    ],
)
def test_accelerate_runs_what_its_launcher_says(env: dict, layout: str, config: str | None, kind: str) -> None:
    assert kind_of(env, context(layout), config) == kind


@pytest.mark.parametrize(
    ("env", "layout", "message"),
    [
        (FSDP, "dp2", "Accelerate runs fsdp here, which is --strategy zero2 or zero3"),
        (FSDP, "dp2/zero2", "FSDP_RESHARD_AFTER_FORWARD=true, this run needs false"),
        (FSDP | {"FSDP_VERSION": "1"}, "dp2/zero3", "FSDP_VERSION=1, this run needs 2"),
        (DEEPSPEED, "dp2/zero3", "ACCELERATE_DEEPSPEED_ZERO_STAGE=2, this run needs 3"),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "dp2/zero2", "OFFLOAD_PARAM_DEVICE=cpu"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "dp2", "mixed precision bf16: use --precision bf16"),
    ],
)
def test_accelerate_refuses_a_launcher_that_says_otherwise(env: dict, layout: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind_of(env, context(layout), None)


@pytest.mark.parametrize(
    ("name", "there"), [("zero3", "none"), ("zero3_offload", "optimizer+parameters"), ("pipeline", "none")]
)
def test_what_a_file_keeps_on_the_host(name: str, there: str) -> None:
    assert engines.offloaded(CONFIGS / f"{name}.json") == there
    assert engines.offloaded(None) == "none"


@pytest.mark.parametrize("mode", ["none", "default", "max-autotune"])
def test_each_block_is_compiled_in_the_mode_asked_for(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: modes.append(options["mode"]))
    engine = engines.build(context("dp1", compile=mode), "torch")
    assert modes == [mode] * (mode != "none") * len(engine.parts[0].blocks)
