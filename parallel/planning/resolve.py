"""From what was requested to what will run: the model, its layout and how the batch divides, all checked.

Everything that can be refused without starting a process is refused here.
"""

import os
from dataclasses import replace

import torch

from paralab import engines
from paralab.axes import eight_bits
from paralab.axes.check import check_split
from paralab.axes.data import approximate
from paralab.axes.held import check_packed
from paralab.axes.recompute import check_attention, check_compiled
from paralab.errors import ConfigError
from paralab.layout import Division, Layout
from paralab.layout import strategies as named
from paralab.layout.strategies import STRATEGIES
from paralab.models import SPECS
from paralab.models.configs import C
from paralab.models.spec import ModelSpec
from paralab.options.choices import EngineName
from paralab.options.config import RunConfig
from paralab.planning.requested_layout import layout_of
from paralab.planning.requested_model import config_of
from paralab.planning.work import Work
from paralab.processes.rank import Rank

# Samples in a step when none is requested: a second or so of work on a laptop at the default size.
DEFAULT_BATCH = {"tokens": 16, "images": 64, "points": 512}  # samples of a step, by their unit


def resolve(run: RunConfig, *, dry: bool = False) -> Work:
    """Choose what was left open and check what was requested. dry: no device is needed. Raises: UsageError."""
    _check_machine(run)
    spec = SPECS[run.model]
    size = run.size or spec.default_size
    config = config_of(run, spec, size)
    rank = Rank.from_env()
    layout = layout_of(run, rank)
    if not dry:
        rank.check_gpus(layout.world_size)
    check_split(layout, spec=spec, config=config)
    _check_blocks(run, spec, config)
    check_compiled(run, layout, spec, config)
    check_attention(run, layout, spec, config)
    division = _division(run, layout, spec, config)
    engine = _engine(run, layout, rank)
    approximate.check(run, layout, engine, blocks=len(spec.blocks(config)))
    eight_bits.check(run, engine)
    name = named.name_of(layout)
    chosen = replace(
        run,
        engine=engine,
        ds_config=engines.deepspeed_file(engine, run.ds_config),
        size=size,
        strategy=run.strategy or (name if name in STRATEGIES else None),
        layout=layout,
        nproc=layout.world_size,
        global_batch_size=division.global_batch_size,
        n_classes=getattr(config, "n_classes", None),
    )
    work = Work(chosen, spec, config, size, layout, division)
    if run.optimizer == eight_bits.NAME:
        check_packed(work)
    engines.check(work, requested=run.engine, launcher=rank.launcher)
    if run.cast_on_device:
        work.dataset()  # refuses some
    return work


def _division(run: RunConfig, layout: Layout, spec: ModelSpec[C], config: C) -> Division:
    """Return how the batch is divided: the requested one, or the smallest that is large enough. Raises: UsageError."""
    layout.check_schedule(run.accumulation)
    parts = layout.dp * layout.micro_batches * run.accumulation
    default_batch = -(-DEFAULT_BATCH[spec.unit_of(config)] // parts) * parts
    division = layout.divide(run.global_batch_size or default_batch, run.accumulation, fixed=run.goes_on)
    check_batch(division, spec)
    if run.cuda_graphs and torch.accelerator.is_available() and division.chunks > 1:
        raise ConfigError(
            f"--compile {run.compile} with {division.chunks} micro-batches a step: a CUDA graph overwrites the"
            " output of the one before, use --compile default or max-autotune-no-cudagraphs"
        )
    return division


def _engine(run: RunConfig, layout: Layout, rank: Rank) -> EngineName:
    """Return the requested engine, or the one that suits the launcher. Raises: UsageError."""
    engine = engines.choose(
        run.engine, launcher=rank.launcher, layout=layout, precision=run.precision, ds_config=run.ds_config
    )
    if run.cuda_graphs and torch.accelerator.is_available() and engine != "torch":
        raise ConfigError(
            f"--compile {run.compile} with --engine {engine}, which does not tell CUDA graphs where a step begins: use"
            " --compile default, or --engine torch"
        )
    return engine


def check_batch(division: Division, spec: ModelSpec) -> None:
    """Raise ConfigError where a step is cut into passes, or has one sample, and the loss is over all of its samples."""
    if not spec.whole_batch:
        return
    if division.chunks > 1:
        raise ConfigError(
            f"{division.chunks} micro-batches a step with {spec.name}, whose loss is over the whole batch, and no mean "
            "of those of its parts: leave --accumulation out"
        )
    if division.global_batch_size == 1:
        raise ConfigError(
            f"--global-batch-size 1 with {spec.name}, whose loss is over the variance of a batch: use 2 or more"
        )


def _check_machine(run: RunConfig) -> None:
    """Refuse what cannot run or would change nothing on this machine. Raises: ConfigError."""
    cores = os.cpu_count() or 1
    if run.threads is not None and run.threads > cores:
        raise ConfigError(f"--threads {run.threads} on a machine with {cores} cores: use {cores} or fewer")
    if torch.accelerator.is_available():
        return
    if run.pin_memory:
        raise ConfigError("--pin-memory without a GPU: it only speeds up copies to a GPU, leave it out")
    if run.non_blocking:
        raise ConfigError("--non-blocking without a GPU: nothing is copied, leave it out")
    if run.compile == "reduce-overhead":
        raise ConfigError("--compile reduce-overhead without a GPU: it uses CUDA graphs, use default or max-autotune")
    if run.compile == "max-autotune-no-cudagraphs":
        raise ConfigError(f"--compile {run.compile} without a GPU: there are no CUDA graphs there, use max-autotune")
    if run.cast_on_device and not run.loader_workers:
        raise ConfigError("--cast-on-device without a GPU: it only helps loader workers, add --loader-workers 1")


def _check_blocks(run: RunConfig, spec: ModelSpec[C], config: C) -> None:
    """Refuse what is done to each block where a model has none. Raises: ConfigError."""
    asked = {"checkpointing": run.checkpointing, "compile": run.compile}
    for name, value in asked.items():
        if value != "none" and not spec.blocks(config):
            raise ConfigError(
                f"--{name} {value} works block by block, and {spec.name} has no blocks: put its repeated layers into "
                f"self.layers = nn.ModuleList(...), or leave --{name} out"
            )
