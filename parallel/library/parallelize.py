"""Split a module of one's own over the processes, as a layout says."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from paralab.axes.check import check_split
from paralab.axes.pipeline.rules import without_blocks
from paralab.axes.recompute import check_attention, check_compiled
from paralab.axes.tensor.rules import without_plan
from paralab.data.dataset import Batch
from paralab.errors import LayoutError, WorldError, did_you_mean
from paralab.layout import Layout
from paralab.layout import strategies as named
from paralab.library import values as own_values
from paralab.library.alike import check_alike, check_asked_alike, draw_alike
from paralab.library.optimizer import MakeOptimizer, MakeScheduler, check_asked
from paralab.library.own import Initialise, Loss, OwnConfig, Told, check_stages, spec_of
from paralab.library.pipeline import Pipeline, without_ends
from paralab.library.sequences import check_experts, check_sequence
from paralab.library.sharding import division_of
from paralab.library.trainer import Trainer
from paralab.library.work import Brought, OwnRun, OwnWork
from paralab.library.world import World
from paralab.models.sequence import SequenceShape
from paralab.models.spec import ModelSpec, Style
from paralab.options.choices import CompileMode, Precision
from paralab.processes.mesh import make_mesh

Made = nn.Module | Callable[[], nn.Module]


def parallelize(
    model: Made,
    layout: Layout | str,
    *,
    world: World,
    loss: Loss | None = None,
    optimizer: MakeOptimizer = torch.optim.AdamW,
    scheduler: MakeScheduler | None = None,
    blocks: str | None = None,
    tensor: Mapping[str, Style] | None = None,
    pipeline: Pipeline | None = None,
    sequence: SequenceShape | None = None,
    experts: str | None = None,
    example: Any = None,
    initialise: Initialise | None = None,
    precision: Precision = "fp32",
    accumulation: int = 1,
    clip_norm: float | None = None,
    checkpointing: Literal["none", "full", "selective"] | int = "none",
    compile: CompileMode = "none",
    unused_parameters: bool = False,
    seed: int = 0,
) -> "Trainer":
    """Split a module over the processes as a layout says, and return what trains it. Collective.

    docs/library.md says more of each argument.

    model: the module, with the values it has on rank 0, or a function that makes it. A module that was passed is
    not to be used afterwards. layout: such as "dp4/zero3", or a strategy such as "zero3", which takes all
    processes. loss: loss(output, targets) -> the mean over the samples, shape (), or a dict of such means; without
    it the module returns its loss. optimizer: a class, or a function of the list of parameters. scheduler: a
    function of the optimizer. blocks: a pattern of the repeated layers, such as "encoder.layers.*", where they are
    not found. tensor: pattern of a module -> "column" or "row". pipeline: what runs before and after the blocks.
    sequence: for context parallelism, what its positions and heads are. experts: for expert parallelism, a pattern of
    the modules that hold experts, of parameters (experts, ...), called with rows (rows, ...) by expert and counts
    (experts,) int64, or as in transformers with tokens, their experts and weights (tokens, top_k). example: a batch,
    whose shapes pipeline stages have to know. initialise: initialise(name, tensor, generator) draws a tensor whole.
    accumulation: backward passes per step. clip_norm: of the gradient over all ranks. checkpointing: recompute the
    activations of no block, of all ("full"), of every n-th, or of attention alone ("selective"). compile: mode of
    torch.compile, for each block. unused_parameters: whether a step may leave parameters without a gradient.

    Raises: LayoutError, ConfigError, WorldError, with what was got, what is needed and what to type.
    """
    split = _layout(layout, world)
    check_asked(loss=loss, optimizer=optimizer, scheduler=scheduler)
    before = torch.get_rng_state()
    skeleton, values = own_values.make(model, main=world.is_main, drawn=initialise is not None)
    del model
    run = OwnRun(
        model="own",
        layout=split,
        engine="torch",
        precision=precision,
        accumulation=accumulation,
        clip_norm=clip_norm,
        checkpointing=str(checkpointing),
        compile=compile,
        seed=seed,
        optimizer="sgd" if optimizer is torch.optim.SGD else "adamw",
    )
    check_asked_alike(run)
    told = Told(
        loss=loss,
        initialise=initialise,
        blocks=blocks,
        tensor=tensor,
        pipeline=pipeline,
        sequence=sequence,
        experts=experts,
    )
    brought = Brought(
        own_values.tensors_of(skeleton),
        optimizer,
        scheduler,
        seed,
        unused_parameters=unused_parameters,
        values=values,
        drawn=initialise is not None,
    )
    return _built(skeleton, split, run, told, brought, world=world, example=example, before=before)


def _built(
    skeleton: nn.Module,
    layout: Layout,
    run: OwnRun,
    told: Told,
    brought: Brought,
    *,
    world: World,
    example: Any,
    before: torch.Tensor,
) -> Trainer:
    """Return the trainer of a module that is on the meta device. before: the state of torch's generator at the start.

    Raises: LayoutError where the module cannot be divided so. Collective.
    """
    trainer = Trainer(world, run, layout, has_loss=told.loss is not None)
    batch = trainer._seen(example) if example is not None else None
    told = replace(told, batch=batch)
    spec = spec_of(skeleton, told, form=lambda: trainer.form, architecture=own_values.digest(skeleton))
    check_axes(layout, spec, skeleton, told.pipeline)
    check_compiled(run, layout, spec, spec.config())
    check_attention(run, layout, spec, spec.config())
    mesh = make_mesh(layout, world.device)
    check_alike(spec.config().architecture, mesh)
    draw_alike(before, mesh)
    brought.spec, brought.config = spec, spec.config()
    trainer._build(_work(run, spec, batch, brought), mesh)
    return trainer


def _work(run: OwnRun, spec: ModelSpec[OwnConfig], batch: Batch | None, brought: Brought) -> OwnWork:
    """Return what is to be run. batch: an example; without it a micro-batch has one row until another is seen."""
    layout = run.layout
    assert layout is not None
    rows = len(batch) if batch is not None else layout.dp * layout.micro_batches * run.accumulation
    return OwnWork(run, spec, spec.config(), "own", layout, division_of(layout, rows, run.accumulation), brought)


def _layout(layout: Layout | str, world: World) -> Layout:
    """Return the layout that was asked for, over all processes. Raises: LayoutError, WorldError."""
    if isinstance(layout, str):
        name = named.ALIASES.get(layout.strip().lower(), layout.strip().lower())
        if name in named.STRATEGIES:
            return named.layout_of(name, world.size)
        if not any(letter.isdigit() for letter in name):
            hint = did_you_mean(name, named.STRATEGIES)
            raise LayoutError(
                f"{layout!r} is no strategy{hint}: use one of {', '.join(named.STRATEGIES)}, or a layout such as "
                "dp4/zero3"
            )
        layout = Layout.parse(layout)
    if layout.local:
        raise LayoutError(f"layout {layout}: ranks that train apart are for paralab run and train, leave local out")
    if layout.world_size != world.size:
        raise WorldError(
            f"layout {layout} needs {layout.world_size} processes, {world.size} started: type torchrun "
            f"--nproc-per-node {layout.world_size} and the program, or use a layout of {world.size}"
        )
    return layout


def check_axes(layout: Layout, spec: ModelSpec[OwnConfig], skeleton: nn.Module, pipeline: Pipeline | None) -> None:
    """Raise LayoutError where an axis of the layout is not told enough of the module."""
    config = spec.config()
    if layout.tp > 1 and not spec.tensor_plan(config):
        raise LayoutError(without_plan(spec.name, skeleton, give="give tensor={plan}"))
    if layout.pp > 1 and not spec.blocks(config):
        raise LayoutError(without_blocks(layout, spec.name, "name them with blocks='layers.*'"))
    if layout.pp > 1 and pipeline is None:
        raise LayoutError(without_ends(skeleton, spec.blocks(config)))
    check_sequence(layout, skeleton, spec.sequence(config))
    check_experts(layout, skeleton, spec.experts, tensor=spec.tensor_plan(config))
    check_split(layout, spec=spec, config=config)
    if layout.pp > 1:
        check_stages(spec.on_meta(config), spec.blocks(config))
