"""The engine on Accelerate: DistributedDataParallel, FSDP2, and DeepSpeed through its plugin.

`accelerate launch --config_file ds_configs/accelerate/NAME.yaml` says which of the three, in environment variables
that Accelerate reads. Under any other launcher a DeepSpeed file says DeepSpeed, and without one ZeRO 2 and 3 are
FSDP2, and ZeRO 1, which FSDP2 has not, is DeepSpeed's. The process group exists already: Accelerate joins it.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from paralab.axes.blocks import blocks_of
from paralab.axes.context import BuildContext
from paralab.axes.optimizer import make_optimizer, make_pieces
from paralab.axes.precision import DTYPES, in_dtype, weight_dtype
from paralab.data.dataset import Batch
from paralab.engines import accelerate_settings, realised
from paralab.engines import deepspeed as ds
from paralab.engines.accelerate_settings import SWITCHES
from paralab.engines.engine import Engine, LossScale, StepResult
from paralab.errors import ConfigError, WorldError
from paralab.models.declared import check_loss
from paralab.processes.mesh import join_alone

# What says how Accelerate prints and where it runs, not what it trains.
_READ_ELSEWHERE = (
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_TORCH_DEVICE",
)


def build_accelerate(context: BuildContext, config_path: str | Path | None = None) -> Engine:
    """Build the engine of a layout on this rank.

    config_path: DeepSpeed's JSON file, for the plugin.
    Raises: ConfigError when the layout and Accelerate's configuration disagree, WorldError when Accelerate sees
    another number of processes.
    """
    join_alone(context.device)
    kind = accelerate_settings.kind_of(os.environ, context, config_path)
    if kind == "deepspeed":
        ds.prepare(context)  # what it leaves in the environment DeepSpeed reads in every step
    with _environment(kind, context):
        if kind == "deepspeed":
            return _build_plugin(context, config_path)
        return _build_plain(context, kind)


class AccelerateEngine(Engine):
    """Accelerate's training loop over DistributedDataParallel or FSDP2."""

    def __init__(self, context: BuildContext, accelerator: Any, model: nn.Module, optimizer: Any) -> None:
        self.context, self.accelerator, self.wrapped, self.optimizer = context, accelerator, model, optimizer
        self.parts: list[nn.Module] = [accelerator.unwrap_model(model)]
        self.optimizers: list[torch.optim.Optimizer] = [optimizer.optimizer]
        self.dtype = weight_dtype(context.run.precision)
        self.steps_done = 0
        self.loss_scale = LossScale(enabled=False)

    def step(self, batch: Batch) -> StepResult:
        ds.set_learning_rate(self.optimizers, self.context, self.steps_done)
        chunks = self.context.division.chunks
        losses = [self._run(chunk) for chunk in batch.split(chunks)]
        self.steps_done += 1
        mean = torch.stack(losses).sum() / (chunks * self.context.layout.dp)
        dist.all_reduce(mean, group=self.context.mesh.world)
        return StepResult(mean, self._norm)

    def _run(self, chunk: Batch) -> Tensor:
        """Run one micro-batch forward and backward, and update with the last one. Return its loss."""
        with self.accelerator.accumulate(self.wrapped):
            inputs = (in_dtype(x, self.dtype) for x in chunk.inputs)
            loss = check_loss(
                self.wrapped(*inputs, targets=in_dtype(chunk.targets, self.dtype)), self.context.spec.name
            )
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                limit = self.context.run.clip_norm or float("inf")
                norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
                self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()


class PluginEngine(ds.ZeroEngine):
    """DeepSpeed driven by Accelerate, whose backward also updates after the last micro-batch."""

    accelerator: Any

    def _run(self, chunk: Batch, *, last: bool) -> Tensor:
        with self.accelerator.accumulate(self.engine):
            loss = check_loss(self.engine(*chunk.inputs, targets=chunk.targets), self.context.spec.name)
            self.accelerator.backward(loss)
        return loss.detach()


def _build_plain(context: BuildContext, kind: str) -> AccelerateEngine:
    model = ds.whole_model(context)
    optimizer = make_optimizer(make_pieces(model.parameters()), context.run)
    accelerator = _accelerator(context, kind, fsdp_plugin=_fsdp_plugin(model, context) if kind == "fsdp" else None)
    model, prepared = accelerator.prepare(model, optimizer)
    _check_started(accelerator, model, context, kind)
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

    # One policy for every unit: an fp32 output would meet the bf16 weights of the next. Models give the loss in fp32.
    bf16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=context.layout.zero == 3,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted({type(block).__name__ for block in blocks_of(model).values()}),
        cpu_ram_efficient_loading=False,  # it loads what is in place already, and parts tied parameters doing so
        mixed_precision_policy=bf16 if context.run.precision == "bf16" else None,
    )


def _accelerator(context: BuildContext, kind: str, **plugins: Any) -> Any:
    """Start Accelerate, and check that it runs what was requested. Raises: ConfigError, WorldError."""
    from accelerate import Accelerator, DistributedType, PartialState
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradientAccumulationPlugin

    AcceleratorState._reset_state(reset_partial_state=True)  # of an engine that was built in this process before
    GradientState._reset_state()
    on_cpu = context.device.type == "cpu"
    if on_cpu and kind != "ddp":
        # Told that this is a CPU, it runs DDP whatever is requested; with a backend alone it takes the CPU for
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
        raise ConfigError(f"Accelerate started as {got}, {kind} was requested: use --engine torch")
    if accelerator.num_processes != context.layout.world_size:
        raise WorldError(
            f"Accelerate sees {accelerator.num_processes} process(es), layout {context.layout} needs "
            f"{context.layout.world_size}: use torchrun --nproc-per-node {context.layout.world_size}"
        )
    return accelerator


def _check_started(accelerator: Any, model: nn.Module, context: BuildContext, kind: str) -> None:
    """Raise ConfigError unless the prepared model is split, rounded, placed and accumulated as the run says."""
    layout, sharded = context.layout, kind == "fsdp"
    wanted = {
        "sharding": "FSDP2" if sharded else "DistributedDataParallel",  # also over one process
        "mesh": (layout.world_size,) if sharded else None,
        "units": [True] * len(blocks_of(accelerator.unwrap_model(model))) if sharded else None,
        "resharding after forward": layout.zero == 3 if sharded else None,
        "precision": context.run.precision,
        "accumulation": context.division.chunks,
        "device": context.device.type,
        "compile": False,  # each block by itself, which is looked at later
    }
    inner = accelerator.unwrap_model(model)
    kinds = {FSDPModule: "FSDP2", DistributedDataParallel: "DistributedDataParallel"}
    parameters = list(model.parameters())
    got = {
        "sharding": next((name for kind, name in kinds.items() if isinstance(model, kind)), "none"),
        "mesh": tuple(parameters[0].device_mesh.shape) if isinstance(parameters[0], DTensor) else None,
        "units": [isinstance(block, FSDPModule) for block in blocks_of(inner).values()] if sharded else None,
        "resharding after forward": all(_reshards(block) for block in blocks_of(inner).values()) if sharded else None,
        "precision": _precision(accelerator, model),
        "accumulation": accelerator.gradient_accumulation_steps,
        "device": " and ".join(sorted({p.device.type for p in parameters})),
        "compile": any(realised.is_compiled(outer) for outer in (model, inner)),
    }
    realised.compare("Accelerate", wanted, got)


def _reshards(block: Any) -> bool:
    return all(group.post_forward_mesh_info is not None for group in block._get_fsdp_state()._fsdp_param_groups)


def _precision(accelerator: Any, model: nn.Module) -> str:
    """Return the precision of the arithmetic: that of autocast or of FSDP2's policy, else that of the weights."""
    dtypes = {p.dtype for p in model.parameters()}
    if isinstance(model, FSDPModule):
        units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        groups = [group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups]
        dtypes = {group.mp_policy.param_dtype or dtype for group in groups for dtype in dtypes}
    elif accelerator.mixed_precision != "no":
        return accelerator.mixed_precision
    return " and ".join(sorted(name for name, dtype in DTYPES.items() if dtype in dtypes))


@contextlib.contextmanager
def _environment(kind: str, context: BuildContext) -> Iterator[None]:
    """Tell Accelerate the ranks and the choice, which it reads here and nowhere else; undo what it writes."""
    before = dict(os.environ)
    for name in before:  # they were compared already, and Accelerate would act on some of them a second time
        if name.startswith(accelerate_settings.PREFIXES) and name not in _READ_ELSEWHERE:
            del os.environ[name]
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
            **{switch: "true" if name == kind else "false" for name, switch in SWITCHES.items()},
        }
    )
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
