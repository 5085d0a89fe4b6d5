"""The engine on DeepSpeed: data parallelism, ZeRO 1 to 3 with or without offload to the CPU, pipelines.

Weights, batches, optimizer and learning rate are those of every other engine; DeepSpeed gets a torch optimizer and
does the rest: gradients over ranks, clipping, partitioning, the pipeline's schedule.
"""

import contextlib
import functools
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes.compose import build_part
from paralab.axes.context import BuildContext
from paralab.axes.optimizer import learning_rate, make_optimizer, make_pieces
from paralab.axes.pipeline import stages as pipeline
from paralab.data.dataset import Batch
from paralab.engines import deepspeed_config, realised
from paralab.engines.engine import Engine, LossScale, ResumableEngine, StepResult
from paralab.engines.state import Chunks, Shapes
from paralab.errors import WorldError
from paralab.models.declared import check_loss
from paralab.processes.mesh import join_alone


def build_deepspeed(context: BuildContext, config_path: str | Path | None = None) -> Engine:
    """Build the engine of a layout on this rank.

    config_path: DeepSpeed's JSON file; without one DeepSpeed's defaults hold, with smaller buckets.
    Raises: ConfigError when the file and the run disagree, or DeepSpeed started something else.
    """
    prepare(context)
    import deepspeed

    config = read_config(context, config_path)
    piped = context.layout.pp > 1
    part = _stage(context) if piped else whole_model(context)
    optimizer = make_optimizer(make_pieces(part.parameters()), context.run)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints while it starts; stdout belongs to results
        module = _pipeline_module(part, context) if piped else part
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    check_started(engine, context, config)
    return (PipelineEngine if piped else ZeroEngine)(context, part, optimizer, engine)


def read_config(context: BuildContext, config_path: str | Path | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run, and say once what of its file does nothing. Raises: ConfigError."""
    config = deepspeed_config.of_run(context, config_path)
    deepspeed_config.validate(config, str(config_path))
    if config_path and dist.get_rank() == 0:
        for note in deepspeed_config.notes(deepspeed_config.read(config_path), str(config_path)):
            _say_once(note)
    return config


@functools.cache
def _say_once(note: str) -> None:
    print(f"paralab: {note}", file=sys.stderr, flush=True)


def prepare(context: BuildContext) -> None:
    """Let DeepSpeed join the process group that exists, without compiling and without printing."""
    join_alone(context.device)
    # It reads these two in the environment and nowhere else.
    os.environ.setdefault("LOCAL_RANK", str(context.device.index or 0))
    if context.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import groups

    # It calls collectives by their former names, and torch says so at every step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # A collective for CPUs in shared memory that nothing here calls: half a minute of compiling at the first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    groups.mpu = None  # of a pipeline that was built in this process before
    deepspeed.init_distributed(dist.get_backend(), verbose=False)


class _DeepSpeedEngine(Engine):
    """What DeepSpeed's engines have in common.

    engine: what `deepspeed.initialize` made of this rank's part and its optimizer.
    """

    def __init__(self, context: BuildContext, part: nn.Module, optimizer: torch.optim.Optimizer, engine: Any) -> None:
        self.context, self.engine = context, engine
        self.parts, self.optimizers = [part], [optimizer]
        self.stage, self.chunks = context.layout.zero, context.division.chunks
        self.steps_done = 0
        self.loss_scale = LossScale(enabled=False)

    def held(self) -> Mapping[str, Iterable[Tensor]]:
        """Return buckets and shards of gradients, of the flat shapes (n,) that DeepSpeed gives them."""
        return held_by(self.engine.optimizer)


class ZeroEngine(_DeepSpeedEngine, ResumableEngine):
    """Data parallelism and ZeRO: the whole model on each rank, which DeepSpeed wraps and partitions."""

    def step(self, batch: Batch) -> StepResult:
        set_learning_rate(self.optimizers, self.context, self.steps_done)
        losses = [self._run(chunk, last=i == self.chunks - 1) for i, chunk in enumerate(batch.split(self.chunks))]
        self.steps_done += 1
        mean = torch.stack(losses).sum() / (self.chunks * self.context.layout.dp)
        dist.all_reduce(mean, group=self.context.mesh.world)
        return StepResult(mean, self._norm if self.stage == 0 else grad_norm(self.engine, mean.device))

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters of their whole shapes. Stage 3 gathers each on all ranks, and drops it at the next one."""
        import deepspeed

        for name, parameter in self.parts[0].named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                yield name, parameter

    @property
    def model(self) -> nn.Module:
        return self.engine  # which sets the precision

    def set_values(self, value_of: Callable[[str], Tensor]) -> None:
        """Give parameters and persistent buffers the tensors, of whole shapes, that are their names'. Collective."""
        from paralab.engines.deepspeed_state import buffers_of

        for name, buffer in buffers_of(self).items():
            buffer.copy_(value_of(name))
        self.set_parameters(value_of)

    def state(self) -> Chunks:
        from paralab.engines.deepspeed_state import gathered_chunks

        return gathered_chunks(self)

    def new_state(self, saved: Shapes) -> Chunks:
        from paralab.engines.deepspeed_state import new_gathered_chunks

        return new_gathered_chunks(self, saved)

    def take_state(self, chunks: Chunks, saved: Shapes) -> None:
        from paralab.engines.deepspeed_state import take_chunks

        take_chunks(self, chunks, saved)

    @torch.no_grad()
    def set_parameters(self, value_of: Callable[[str], Tensor]) -> None:
        """Give each parameter the tensor, of its whole shape and equal on all ranks, that is its name's. Collective."""
        import deepspeed

        for name, parameter in self.parts[0].named_parameters():
            value = value_of(name)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                parameter.copy_(value)
        if self.stage > 0:
            self.engine.optimizer.refresh_fp32_params()  # the copy that is updated
        if self.stage == 3:
            self.engine.optimizer.checkpoint_event_epilogue()  # small parameters stay gathered

    def _run(self, chunk: Batch, *, last: bool) -> Tensor:
        """Run one micro-batch forward and backward, and update with the last one. Return its loss."""
        loss = check_loss(self.engine(*chunk.inputs, targets=chunk.targets), self.context.spec.name)
        self.engine.backward(loss)
        if last and self.stage == 0:  # DeepSpeed clips by the norm there, and forgets it
            self._norm = torch.nn.utils.get_total_norm(p.grad for p in self.parts[0].parameters() if p.grad is not None)
        self.engine.step()
        return loss.detach()


class PipelineEngine(_DeepSpeedEngine):
    """DeepSpeed's 1F1B pipeline. Each of its layers is one whole stage, cut as for the native engine."""

    def step(self, batch: Batch) -> StepResult:
        set_learning_rate(self.optimizers, self.context, self.steps_done)
        chunks = batch.split(self.chunks)
        loss = self.engine.train_batch(iter([(chunk.inputs, chunk.targets) for chunk in chunks]))
        self.steps_done += 1
        return StepResult(loss.detach().clone(), grad_norm(self.engine, loss.device))


class Stage(nn.Module):
    """A stage as a layer of DeepSpeed: one argument in, one result out. The last one leaves its work to the loss."""

    def __init__(self, part: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.part, self.last = part, last

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Return what the next stage takes, (micro_batch, ...); the last stage hands on what it was given."""
        return x if self.last else self.part(*_as_tuple(x))

    def loss(self, x: Tensor | tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Return the mean loss () of what the last stage was given and targets, both (micro_batch, ...)."""
        return self.part(*_as_tuple(x), targets=targets)


class Tied(nn.Module):
    """A layer that only holds the tied parameters of a stage: DeepSpeed sums their gradients over both ends."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        for i, parameter in enumerate(parameters):
            self.register_parameter(f"tied{i}", parameter)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        """Return what it is given, of any shape: the parameters that it holds are used elsewhere."""
        return x


def _stage(context: BuildContext) -> nn.Module:
    """Return this rank's stage with its values. It sets its own precision: the loss runs outside DeepSpeed's."""
    (part,) = pipeline.make_stages(context).values()
    build_part(part, replace(context, layout=context.layout.but(zero=0)))
    return part


@torch.no_grad()  # it sends tied parameters from one end to the other
def _pipeline_module(part: nn.Module, context: BuildContext) -> nn.Module:
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

    pp, mine = context.layout.pp, context.mesh.rank("pp")
    tied = pipeline.tied_ends(context.spec, context.model_config)
    stage = Stage(part, last=mine == pp - 1)
    layers: list[Any] = [stage if i == mine else LayerSpec(Stage, None, last=False) for i in range(pp)]
    if tied:
        named = dict(part.named_parameters())
        names = tied.values() if mine == 0 else tied.keys()
        parameters = [named[name] for name in names] if mine in (0, pp - 1) else []
        weights = [f"tied{i}" for i in range(len(tied))]
        ends = TiedLayerSpec("tied", Tied, parameters, tied_weight_attr=weights)
        layers = [ends, *layers, ends]
    return PipelineModule(layers, num_stages=pp, loss_fn=stage.loss, partition_method=f"type:{Stage.__name__}")


def whole_model(context: BuildContext) -> nn.Module:
    """Return the whole model on this rank, with its values. The engine itself lowers the precision of arithmetic."""
    model = context.new_model()
    plain = replace(context, layout=context.layout.but(zero=0), run=replace(context.run, precision="fp32"))
    build_part(model, plain)
    return model


def set_learning_rate(optimizers: list[torch.optim.Optimizer], context: BuildContext, step: int) -> None:
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = learning_rate(context.run, step)


def grad_norm(engine: Any, device: torch.device) -> Tensor:
    """Return the norm before clipping that DeepSpeed found in its last step, fp32 of shape ()."""
    return torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float32, device=device).detach().clone()


def held_by(optimizer: Any) -> dict[str, list[Tensor]]:
    """Return the buckets in which gradients wait to be sent, and the shards of gradients, of a ZeRO optimizer.

    All are flat, (n,). Stages 1 and 2 have buckets from the first gradient of a backward pass to its end, stage 3 has
    them all the time. Stage 0 has no optimizer of its own, and sends what it is done with.
    """
    buckets = [bucket.buffer for bucket in getattr(optimizer, "ipg_buckets", {}).values()]
    buffers = [tensor for bucket in buckets for tensor in (bucket if isinstance(bucket, list) else [bucket])]
    shards = getattr(optimizer, "grad_partitions_flat_buffer", None)
    return {"buffers": [x for x in buffers if x is not None], "gradients": [] if shards is None else [shards]}


def check_started(engine: Any, context: BuildContext, config: dict[str, Any]) -> None:
    """Raise ConfigError or WorldError unless DeepSpeed runs what it was asked to."""
    wanted = {
        "ZeRO stage": config["zero_optimization"]["stage"],
        "batch": context.division.global_batch_size,
        "accumulation": context.division.chunks,
        "precision": context.run.precision,
        "offload": deepspeed_config.offloaded(config),
        "clipping": context.run.clip_norm or 0.0,
    }
    sections = {"offload_optimizer": engine.zero_offload_optimizer(), "offload_param": engine.zero_offload_param()}
    devices = {name: {"device": section.device} for name, section in sections.items() if section is not None}
    rounds_weights = engine.bfloat16_enabled() or engine.fp16_enabled()
    got = {
        "ZeRO stage": int(engine.zero_optimization_stage()),
        "batch": engine.train_batch_size(),
        "accumulation": engine.gradient_accumulation_steps(),
        "precision": "rounded weights" if rounds_weights else "bf16" if engine.torch_autocast_enabled() else "fp32",
        "offload": deepspeed_config.offloaded({"zero_optimization": devices}),
        "clipping": engine.gradient_clipping(),
    }
    realised.compare("DeepSpeed", wanted, got)
    if engine.dp_world_size != context.layout.dp:
        raise WorldError(
            f"DeepSpeed started with {engine.dp_world_size} data ranks, layout {context.layout} needs "
            f"{context.layout.dp}: start {context.layout.world_size} processes"
        )


def _as_tuple(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)
