"""The engine on Accelerate: DistributedDataParallel, FSDP2, and DeepSpeed through its plugin.

`accelerate launch --config_file ds_configs/accelerate/NAME.yaml` says which of the three, in environment variables
that Accelerate reads. Under any other launcher a DeepSpeed file says DeepSpeed, and without one ZeRO 2 and 3 are
FSDP2, and ZeRO 1, which FSDP2 has not, is DeepSpeed's. The process group exists already: Accelerate joins it.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from parallel.data.dataset import Batch
from parallel.engines import deepspeed as ds
from parallel.errors import ConfigError, WorldError
from parallel.optimizer import make_optimizer, make_pieces
from parallel.precision import in_dtype, weight_dtype
from parallel.spec import BuildContext, Engine, StepResult

STAGES = {"ddp": (0,), "fsdp": (2, 3), "deepspeed": (1, 2, 3)}
_KINDS = ("ddp", "deepspeed", "fsdp", "fsdp")  # of each stage, where nothing says otherwise
_SWITCHES = {"fsdp": "ACCELERATE_USE_FSDP", "deepspeed": "ACCELERATE_USE_DEEPSPEED"}


def build_accelerate(context: BuildContext, config_path: str | Path | None = None) -> Engine:
    """Build the engine of a layout on this rank.

    config_path: DeepSpeed's JSON file, for the plugin.
    Raises: ConfigError when the layout and Accelerate's configuration disagree, WorldError when Accelerate sees
    another number of processes.
    """
    config_path = config_path or os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    kind = kind_of(os.environ, context, config_path)
    if kind == "deepspeed":
        ds.prepare(context)  # what it leaves in the environment DeepSpeed reads in every step
    with _environment(kind, context):
        if kind == "deepspeed":
            return _build_plugin(context, config_path)
        return _build_plain(context, kind)


def kind_of(env: Mapping[str, str], context: BuildContext, config_path: str | Path | None) -> str:
    """Return what Accelerate is to run: ddp, fsdp or deepspeed.

    env: what `accelerate launch` made of its YAML file and flags.
    Raises: ConfigError when that is not what the layout and the run say.
    """
    zero = context.layout.zero
    asked = [kind for kind, switch in _SWITCHES.items() if _is_on(env.get(switch))]
    kind = "deepspeed" if config_path else asked[0] if asked else _KINDS[zero]
    if zero not in STAGES[kind]:
        able = " or ".join(f"zero{stage}" if stage else "ddp" for stage in STAGES[kind])
        raise ConfigError(
            f"Accelerate runs {kind} here, which is --strategy {able}, and the layout is {context.layout}: use one of "
            "these, another file of ds_configs/accelerate, or --ds-config with a file of ds_configs"
        )
    mixed = env.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", context.run.precision):
        raise ConfigError(f"accelerate launch says mixed precision {mixed}: use --precision {mixed}, here and there")
    if asked:
        _agree(env, _expected(kind, context, config_path))
    return kind


def _expected(kind: str, context: BuildContext, config_path: str | Path | None) -> dict[str, str]:
    """Return what the variables of `accelerate launch` must say where they say anything."""
    if kind == "fsdp":
        return {"FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true" if context.layout.zero == 3 else "false"}
    if config_path:  # the file decides, and is checked itself
        return {}
    devices = {f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE": "none" for what in ("OPTIMIZER", "PARAM")}
    return {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(context.layout.zero), **devices}


def _agree(env: Mapping[str, str], expected: Mapping[str, str]) -> None:
    for name, value in expected.items():
        if env.get(name, value).lower() != value:
            raise ConfigError(
                f"accelerate launch says {name}={env[name]}, this run needs {value}: use another --strategy, "
                "or a file of ds_configs/accelerate"
            )


class AccelerateEngine:
    """Accelerate's training loop over DistributedDataParallel or FSDP2."""

    def __init__(self, context: BuildContext, accelerator: Any, model: nn.Module, optimizer: Any) -> None:
        self.context, self.accelerator, self.model, self.optimizer = context, accelerator, model, optimizer
        self.parts: list[nn.Module] = [accelerator.unwrap_model(model)]
        self.optimizers: list[torch.optim.Optimizer] = [optimizer.optimizer]
        self.dtype = weight_dtype(context.run.precision)
        self.steps_done = 0

    def step(self, batch: Batch) -> StepResult:
        ds.set_learning_rate(self.optimizers, self.context, self.steps_done)
        chunks = self.context.division.chunks
        losses = [self._run(chunk) for chunk in batch.split(chunks)]
        self.steps_done += 1
        mean = torch.stack(losses).sum() / (chunks * self.context.layout.dp)
        dist.all_reduce(mean, group=self.context.mesh.world)
        return StepResult(mean, self._norm)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.parts[0].named_parameters()

    def _run(self, chunk: Batch) -> Tensor:
        """Run one micro-batch forward and backward, and update with the last one. Return its loss."""
        with self.accelerator.accumulate(self.model):
            inputs = (in_dtype(x, self.dtype) for x in chunk.inputs)
            loss = self.model(*inputs, targets=in_dtype(chunk.targets, self.dtype))
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                limit = self.context.run.clip_norm or float("inf")
                norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
                self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()


class PluginEngine(ds.ZeroEngine):
    """DeepSpeed driven by Accelerate, whose backward also updates after the last micro-batch."""

    accelerator: Any

    def _run(self, chunk: Batch, *, last: bool) -> Tensor:
        with self.accelerator.accumulate(self.engine):
            loss = self.engine(*chunk.inputs, targets=chunk.targets)
            self.accelerator.backward(loss)
        return loss.detach()


def _build_plain(context: BuildContext, kind: str) -> AccelerateEngine:
    model = ds.whole_model(context)
    optimizer = make_optimizer(make_pieces(model.parameters()), context.run)
    accelerator = _accelerator(context, kind, fsdp_plugin=_fsdp_plugin(model, context) if kind == "fsdp" else None)
    model, prepared = accelerator.prepare(model, optimizer)
    return AccelerateEngine(context, accelerator, model, prepared)


def _build_plugin(context: BuildContext, config_path: str | Path | None) -> PluginEngine:
    from accelerate import DeepSpeedPlugin

    config = ds.read_config(context, config_path)
    model = ds.whole_model(context)
    optimizer = make_optimizer(make_pieces(model.parameters()), context.run)
    plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
    accelerator = _accelerator(context, "deepspeed", deepspeed_plugin=plugin)
    wrapped, _ = accelerator.prepare(model, optimizer)
    ds.check_started(wrapped, context, config)
    engine = PluginEngine(context, model, optimizer, wrapped)
    engine.accelerator = accelerator
    return engine


def _fsdp_plugin(model: nn.Module, context: BuildContext) -> Any:
    """Return Accelerate's FSDP2, each block its own unit; the rest of its settings come from its configuration."""
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    bf16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=context.layout.zero == 3,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted({type(block).__name__ for block in model.blocks.values()}),
        cpu_ram_efficient_loading=False,  # it loads what is in place already, and parts tied parameters doing so
        mixed_precision_policy=bf16 if context.run.precision == "bf16" else None,
    )


def _accelerator(context: BuildContext, kind: str, **plugins: Any) -> Any:
    """Start Accelerate, and check that it runs what was asked for. Raises: ConfigError, WorldError."""
    from accelerate import Accelerator, DistributedType, PartialState
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin

    AcceleratorState._reset_state(reset_partial_state=True)  # of an engine that was built in this process before
    GradientState._reset_state()
    on_cpu = context.device.type == "cpu"
    if on_cpu and kind != "ddp":
        # Told that this is a CPU, it runs DDP whatever it is asked for; with a backend alone it takes the CPU for
        # want of anything else, and offers FSDP to every type of device but that.
        state = PartialState(backend="gloo")
        state.distributed_type = DistributedType.MULTI_GPU if kind == "fsdp" else DistributedType.DEEPSPEED
    accelerator = Accelerator(
        cpu=on_cpu and kind == "ddp",
        mixed_precision="bf16" if context.run.precision == "bf16" and kind != "deepspeed" else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=context.division.chunks, sync_with_dataloader=False
        ),
        **plugins,
    )
    types = {"ddp": ("MULTI_CPU", "MULTI_GPU"), "fsdp": ("FSDP",), "deepspeed": ("DEEPSPEED",)}[kind]
    got = str(accelerator.distributed_type).rpartition(".")[2]
    if got not in types:
        raise ConfigError(f"Accelerate started as {got}, {kind} was asked for: use --engine torch")
    if accelerator.num_processes != context.layout.world_size:
        raise WorldError(
            f"Accelerate sees {accelerator.num_processes} process(es), layout {context.layout} needs "
            f"{context.layout.world_size}: use torchrun --nproc-per-node {context.layout.world_size}"
        )
    return accelerator


@contextlib.contextmanager
def _environment(kind: str, context: BuildContext) -> Iterator[None]:
    """Tell Accelerate the ranks and the choice, which it reads here and nowhere else; undo what it writes."""
    before = dict(os.environ)
    world, rank = dist.get_world_size(), dist.get_rank()
    os.environ.update(
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(context.device.index or before.get("LOCAL_RANK", 0)),
            "LOCAL_WORLD_SIZE": before.get("LOCAL_WORLD_SIZE", str(world)),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # it sets the threads itself where this is missing
            "ACCELERATE_USE_CPU": "true" if kind == "ddp" and context.device.type == "cpu" else "false",
            "DS_ACCELERATOR": before.get("DS_ACCELERATOR", context.device.type),  # it imports DeepSpeed to look for it
            **{switch: "true" if name == kind else "false" for name, switch in _SWITCHES.items()},
        }
    )
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # keys of a YAML file, which were compared already
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _is_on(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes")
