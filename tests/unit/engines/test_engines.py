"""Which engine runs a layout, what Accelerate's launcher may say, and what is read back from an engine."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel

from paralab import engines
from paralab.axes.context import BuildContext
from paralab.data.dataset import Batch
from paralab.engines import accelerate, accelerate_settings, deepspeed, deepspeed_config, deepspeed_state, realised
from paralab.engines.accelerate import AccelerateEngine
from paralab.engines.accelerate_settings import kind_of
from paralab.engines.native import NativeEngine
from paralab.errors import ConfigError, LayoutError, WorldError
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.options.choices import EngineChoice, Precision
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.mesh import Mesh
from paralab.processes.pretend import pretended
from paralab.processes.rank import Launcher

CONFIGS = Path(__file__).resolve().parents[3] / "ds_configs"


def context(layout: str, **changes: Any) -> BuildContext:
    run = RunConfig(size="tiny", layout=Layout.parse(layout), global_batch_size=16, **changes)
    work = resolve(run)
    return work.context(Mesh(work.layout, torch.device("cpu")))


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
        ("deepspeed", "dp1", "fp32", None, "deepspeed"),
        ("deepspeed", "dp1/zero3", "fp32", None, "deepspeed"),
        ("accelerate", "dp1", "fp32", None, "accelerate"),
        ("accelerate", "dp2", "fp64", None, "accelerate"),
        ("accelerate", "dp2/zero1", "fp32", "zero1.json", "accelerate"),
        ("accelerate", "pp2/mb4", "fp32", None, "torch"),
    ],
)
def test_auto_follows_the_launcher_where_its_engine_is_able(
    launcher: Launcher, layout: str, precision: Precision, ds_config: str | None, chosen: str
) -> None:
    got = engines.choose(
        "auto", launcher=launcher, layout=Layout.parse(layout), precision=precision, ds_config=ds_config
    )
    assert got == chosen


@pytest.mark.parametrize("engine", ["deepspeed", "accelerate"])
@pytest.mark.parametrize(
    "layout",
    ["tp2", "dp2.tp2", "pp2/gpipe/mb4", "dp2.pp2/mb4", "dp2.pp2/zero2/mb4", "dp4/zero3/shard2", "dp4.pp2/zero1/shard2"],
)
def test_an_engine_asked_for_names_what_it_can(engine: EngineChoice, layout: str) -> None:
    with pytest.raises(
        LayoutError, match=rf"--engine {engine} cannot run layout .* it runs single, ddp.*--engine torch"
    ):
        engines.choose(engine, launcher="torchrun", layout=Layout.parse(layout), precision="fp32")


def test_a_precision_that_trains_wrongly_is_refused() -> None:
    with pytest.raises(ConfigError, match="--engine deepspeed does not run --precision fp16: use fp32 or bf16"):
        engines.choose("deepspeed", launcher="torchrun", layout=Layout(dp=2), precision="fp16")


def test_a_deepspeed_file_is_nothing_to_torch() -> None:
    with pytest.raises(ConfigError, match="--engine deepspeed"):
        context("dp2", engine="torch", ds_config="zero1.json")


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


def sizes(*, replicate: int, shard: int, tensor: int = 1) -> dict[str, str]:
    parts = {"DP_REPLICATE": replicate, "DP_SHARD": shard, "TP": tensor, "CP": 1, "SP": 1}
    return {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"} | {
        f"PARALLELISM_CONFIG_{name}_SIZE": str(size) for name, size in parts.items()
    }


@pytest.mark.parametrize(
    ("env", "layout", "changes", "message"),
    [
        (FSDP, "dp2", {}, "Accelerate runs fsdp here, which is --strategy zero2 or zero3"),
        (FSDP, "dp2/zero2", {}, "fsdp_reshard_after_forward true, this run needs false: type --strategy zero3"),
        (FSDP | {"FSDP_VERSION": "1"}, "dp2/zero3", {}, "fsdp_version 1, this run needs 2"),
        (
            FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "dp2/zero3",
            {},
            "fsdp_activation_checkpointing true, this run needs false: type --checkpointing full",
        ),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "dp2/zero3", {}, "fsdp_offload_params true.*zero3_offload.json"),
        (FSDP | {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, "dp2/zero3", {}, "fsdp_sharding_strategy HYBRID_SHARD"),
        (FSDP | {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "dp2/zero3", {}, "transformer_based_wrap"),
        (
            FSDP | {"FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer"},
            "dp2/zero3",
            {},
            "fsdp_transformer_layer_cls_to_wrap BertLayer, this run needs Block",
        ),
        (FSDP | {"FSDP_IGNORED_MODULES": "wte"}, "dp2/zero3", {}, "remove fsdp_ignored_modules"),
        (FSDP | {"FSDP_NEW_THING": "true"}, "dp2/zero3", {}, "fsdp_new_thing true, which is not known here"),
        (
            FSDP | sizes(replicate=2, shard=2),
            "dp4/zero3",
            {},
            "parallelism_config_dp_replicate_size 2, this run needs 1",
        ),
        (FSDP | sizes(replicate=1, shard=2, tensor=2), "dp4/zero3", {}, "parallelism_config_dp_shard_size 2"),
        (DEEPSPEED, "dp2/zero3", {}, "zero_stage 2, this run needs 3: type --strategy zero2"),
        (
            DEEPSPEED | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            "dp2/zero2",
            {},
            "offload_param_device cpu, this run needs none",
        ),
        (
            DEEPSPEED | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "dp2/zero2",
            {},
            "gradient_accumulation_steps 4, this run needs 1: type --accumulation 4",
        ),
        (
            DEEPSPEED | {"ACCELERATE_GRADIENT_CLIPPING": "0.5"},
            "dp2/zero2",
            {},
            "gradient_clipping 0.5, this run needs 1: type --clip-norm 0.5",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true", "MEGATRON_LM_TP_DEGREE": "2"}, "dp2", {}, "MEGATRON_LM"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "dp2", {}, "no: type --precision bf16, or write mixed_precision: no"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "dp2", {}, "mixed_precision fp16.*runs fp32 or bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "dp2", {}, "mixed_precision fp8.*write mixed_precision: no$"),
        (
            FSDP | {"FSDP_RESHARD_AFTER_FORWARD": "full_shard"},
            "dp2/zero3",
            {},
            "fsdp_reshard_after_forward full_shard, this run needs true: write fsdp_reshard_after_forward: true",
        ),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "EAGER"},
            "dp2",
            {"compile": "default"},
            "dynamo_backend EAGER, this run needs inductor: write dynamo_backend: inductor",
        ),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "dp2", {}, "dynamo_backend INDUCTOR.*type --compile default"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune"},
            "dp2",
            {"compile": "default"},
            "dynamo_mode max-autotune, this run needs default: type --compile max-autotune",
        ),
    ],
)
def test_accelerate_refuses_a_launcher_that_says_otherwise(env: dict, layout: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind_of(env, context(layout, **changes), None)


@pytest.mark.parametrize(
    ("env", "layout", "changes"),
    [
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "dp2/zero3", {"checkpointing": "full"}),
        (FSDP | sizes(replicate=1, shard=4), "dp4/zero3", {}),
        (FSDP | {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}, "dp2/zero3", {}),
        (FSDP | {"FSDP_NEW_THING": "false", "FSDP_MIN_NUM_PARAMS": "100000000"}, "dp2/zero3", {}),
        (sizes(replicate=2, shard=1), "dp2", {}),
        ({"FSDP_VERSION": "1", "PARALLELISM_CONFIG_TP_SIZE": "4", "MEGATRON_LM_TP_DEGREE": "1"}, "dp2", {}),
        (DEEPSPEED | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, "dp2/zero2", {"accumulation": 2}),
        (DEEPSPEED | {"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "dp2/zero2", {}),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "dp2/zero2", {}),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "dp2", {"precision": "bf16"}),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "default"},
            "dp2",
            {"compile": "default"},
        ),
    ],
)
def test_accelerate_takes_what_says_the_same_or_is_not_in_use(env: dict, layout: str, changes: dict) -> None:
    kind_of(env, context(layout, **changes), None)


def test_every_variable_of_the_installed_accelerate_has_a_meaning() -> None:
    """Accelerate's own sources are the list: what its launcher sets, and what its plugins read."""
    spec = importlib.util.find_spec("accelerate")
    assert spec is not None and spec.origin is not None
    launch = (Path(spec.origin).parent / "utils" / "launch.py").read_text()
    named = set(re.findall(r'"((?:ACCELERATE|FSDP)_[A-Z0-9_]+)"', launch))
    named |= {f"PARALLELISM_CONFIG_{name}" for name in re.findall(r'prefix \+ "((?:DP|TP|CP|SP)_[A-Z0-9_]+)"', launch)}
    # of a precision that is refused, of a test of its own, of another launcher, of Megatron-LM, which is refused
    named = {name for name in named if not re.search("FP8|DEBUG_RDV|SAGEMAKER|_DEGREE", name)}
    known = set(accelerate_settings.TAKEN) | set(accelerate_settings.SWITCHES.values())
    for kind, layout in (("fsdp", "dp2/zero3"), ("deepspeed", "dp2/zero2")):
        known |= accelerate_settings.agreed(kind, context(layout)).keys()
    assert len(named) > 45
    assert named <= known


def test_accelerate_settings_that_torch_would_not_follow_are_refused() -> None:
    here = context("tp2", engine="torch")
    for env in (FSDP, DEEPSPEED, {"ACCELERATE_USE_MEGATRON_LM": "true"}):
        with pytest.raises(ConfigError, match="type --engine torch to train without Accelerate's settings"):
            engines.check(here, requested="auto", launcher="accelerate", env=env)
    engines.check(here, requested="torch", launcher="accelerate", env=FSDP)
    engines.check(here, requested="auto", launcher="torchrun", env=FSDP)
    engines.check(here, requested="auto", launcher="accelerate", env={"ACCELERATE_MIXED_PRECISION": "no"})


def test_the_file_of_a_run_may_be_named_by_accelerates_own(tmp_path: Path) -> None:
    env = {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "zero3_offload.json"}
    assert engines.deepspeed_file("accelerate", None, env) == "zero3_offload.json"
    assert engines.deepspeed_file("accelerate", "./zero3_offload.json", env) == "./zero3_offload.json"
    assert engines.deepspeed_file("deepspeed", None, env) is None
    with pytest.raises(ConfigError, match=r"--ds-config zero3.json, and accelerate launch says .*zero3_offload.json"):
        engines.deepspeed_file("accelerate", "zero3.json", env)


@pytest.mark.parametrize("changes", [{"checkpointing": "full"}, {"checkpointing": "2"}, {"compile": "default"}])
def test_an_engine_with_other_blocks_than_recorded_is_refused(changes: dict) -> None:
    built = engines.build(context("dp1", **changes), "torch")
    with pytest.raises(ConfigError, match=r"torch started with (recomputed|compiled) blocks \[0.*requested \[\]"):
        realised.check_blocks("torch", built.parts, context("dp1").run)
    plain = engines.build(context("dp1"), "torch")
    with pytest.raises(ConfigError, match=r"torch started with (recomputed|compiled) blocks \[\].*requested \[0"):
        realised.check_blocks("torch", plain.parts, context("dp1", **changes).run)


def test_attention_that_is_not_recomputed_as_recorded_is_refused() -> None:
    selective = {"checkpointing": "selective"}
    built = engines.build(context("dp1", **selective), "torch")
    realised.check_blocks("torch", built.parts, context("dp1", **selective).run)
    with pytest.raises(ConfigError, match=r"torch started with recomputed attention [1-9], this run requested 0"):
        realised.check_blocks("torch", built.parts, context("dp1").run)


def test_torchs_own_wrapper_is_seen_as_recomputing() -> None:
    built = engines.build(context("dp1"), "torch")
    blocks: Any = built.parts[0].blocks
    blocks["1"] = checkpoint_wrapper(blocks["1"])
    with pytest.raises(ConfigError, match=r"recomputed blocks \[1\]"):
        realised.check_blocks("torch", built.parts, context("dp1").run)


@pytest.mark.parametrize(
    ("name", "there"), [("zero3", "none"), ("zero3_offload", "optimizer+parameters"), ("pipeline", "none")]
)
def test_what_a_file_keeps_on_the_host(name: str, there: str) -> None:
    assert engines.offloaded(CONFIGS / f"{name}.json", Layout(dp=2)) == there
    assert engines.offloaded(None, Layout()) == "none"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("zero_optimization_stage", 1, "ZeRO stage 1, this run requested 2"),
        ("train_batch_size", 8, "batch 8, this run requested 16"),
        ("gradient_accumulation_steps", 1, "accumulation 1, this run requested 2"),
        ("torch_autocast_enabled", False, "precision fp32, this run requested bf16"),
        ("fp16_enabled", True, "precision rounded weights, this run requested bf16"),
        ("zero_offload_optimizer", SimpleNamespace(device="cpu"), "offload optimizer, this run requested none"),
        ("gradient_clipping", 0.0, "clipping 0.0, this run requested 0.5"),
        ("dp_world_size", 4, "4 data ranks, layout dp2/zero2 needs 2: start 2 processes"),
    ],
)
def test_what_deepspeed_started_otherwise_is_refused(name: str, value: Any, said: str) -> None:
    here = context("dp2/zero2", precision="bf16", accumulation=2, clip_norm=0.5)
    facts: dict[str, Any] = {
        "zero_optimization_stage": 2,
        "train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "torch_autocast_enabled": True,
        "bfloat16_enabled": False,
        "fp16_enabled": False,
        "zero_offload_optimizer": None,
        "zero_offload_param": None,
        "gradient_clipping": 0.5,
        "dp_world_size": 2,
    }

    def started(facts: dict[str, Any]) -> Any:
        return SimpleNamespace(
            **{key: got if key == "dp_world_size" else lambda got=got: got for key, got in facts.items()}
        )

    config = deepspeed_config.of_run(here, None)
    deepspeed.check_started(started(facts), here, config)
    with pytest.raises((ConfigError, WorldError), match=f"DeepSpeed started with {said}"):
        deepspeed.check_started(started(facts | {name: value}), here, config)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"gradient_accumulation_steps": 1}, "accumulation 1, this run requested 2"),
        ({"mixed_precision": "bf16"}, "precision bf16, this run requested fp32"),
    ],
)
def test_what_accelerate_started_otherwise_is_refused(facts: dict[str, Any], said: str) -> None:
    here = context("dp2", accumulation=2)
    right: dict[str, Any] = {"gradient_accumulation_steps": 2, "mixed_precision": "no"}

    def started(facts: dict[str, Any]) -> Any:
        return SimpleNamespace(**facts, unwrap_model=lambda model: model.module)

    with pretended(Layout(dp=2), 0):
        model = DistributedDataParallel(nn.Linear(2, 2))
        accelerate._check_started(started(right), model, here, "ddp")
        with pytest.raises(ConfigError, match=f"Accelerate started with {said}"):
            accelerate._check_started(started(right | facts), model, here, "ddp")


@pytest.mark.parametrize("mode", ["none", "default", "max-autotune"])
def test_each_block_is_compiled_in_the_mode_asked_for(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: modes.append(options["mode"]) or call)
    engine = engines.build(context("dp1", compile=mode), "torch")
    assert modes == [mode] * (mode != "none") * len(list(engine.parts[0].blocks.children()))


@pytest.mark.parametrize(("clip_norm", "limit"), [(None, float("inf")), (0.5, 0.5)])
def test_accelerate_clips_to_what_the_run_says_once_a_step(clip_norm: float | None, limit: float) -> None:
    """Each process has the mean of its own micro-batches, of which a step has two."""
    limits: list[float] = []

    @contextlib.contextmanager
    def accumulate(model: nn.Module) -> Iterator[None]:
        accelerator.sync_gradients = not getattr(accelerator, "sync_gradients", True)
        yield

    def clip(parameters: object, limit: float) -> torch.Tensor:
        limits.append(limit)
        return torch.ones(())

    model = nn.Linear(2, 2)
    accelerator = SimpleNamespace(
        accumulate=accumulate, backward=lambda loss: None, clip_grad_norm_=clip, unwrap_model=lambda model: model
    )
    optimizer = SimpleNamespace(optimizer=torch.optim.SGD(model.parameters()), step=int, zero_grad=int)
    engine = AccelerateEngine(context("dp1", accumulation=2, clip_norm=clip_norm), accelerator, model, optimizer)
    wrapped: Any = lambda x, targets: x.mean().requires_grad_()  # noqa: E731
    wrapped.parameters = model.parameters
    engine.wrapped = wrapped
    for value in (1.0, 3.0):
        engine._run(Batch((torch.full((2,), value),), torch.zeros(2)))
    assert limits == [limit] and engine._norm == 1.0


def test_what_accelerate_writes_into_the_environment_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_world_size", "get_rank"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda: 1)
    before = dict(os.environ)
    with accelerate._environment("ddp", Mock(device=torch.device("cpu"))):
        os.environ["ACCELERATE_OF_A_RUN"] = "1"
    assert dict(os.environ) == before


@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_is_told_what_a_stage_keeps_and_to_sum_in_fp32(stage: int) -> None:
    model = SPECS["gpt2"].on_meta(SPECS["gpt2"].config("tiny"))
    context = Mock(layout=Layout(dp=2, zero=stage), run=Mock(precision="bf16"))
    plugin = accelerate._fsdp_plugin(model, context)
    assert plugin.reshard_after_forward is (stage == 3)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


def test_states_that_a_checkpoint_has_not_are_forgotten() -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1)).backward()
    optimizer.step()
    deepspeed_state._empty_states(Mock(stage=0, parts=[layer], optimizers=[optimizer]), {})
    assert not optimizer.state


def test_what_follows_an_update_begins_where_a_checkpoint_was_read() -> None:
    engine = NativeEngine.__new__(NativeEngine)
    engine.refresh, engine.context = Mock(), Mock()
    engine.take_state({}, {})
    assert engine.refresh.call_count == 1
