"""From what was requested to what will run: the model, its layout and how the batch divides, all checked.

Everything that can be refused without starting a process is refused here.
"""

import os
import shlex
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import nn

from paralab import engines
from paralab.axes import eight_bits
from paralab.axes.check import check_split
from paralab.axes.context import BuildContext
from paralab.axes.data import approximate
from paralab.axes.held import check_packed
from paralab.axes.precision import weight_dtype
from paralab.axes.recompute import check_attention, check_compiled
from paralab.data import Compact, TextOptions, count_classes, open_dataset
from paralab.data.dataset import Dataset
from paralab.errors import ConfigError, LayoutError, did_you_mean
from paralab.layout import Division, Layout
from paralab.layout import strategies as named
from paralab.layout.strategies import STRATEGIES
from paralab.models import SPECS
from paralab.models.spec import C, ModelConfig, ModelSpec
from paralab.options.choices import EngineName
from paralab.options.config import RunConfig
from paralab.options.flags import flags_of
from paralab.planning.vocabulary import with_tokenizer
from paralab.processes.allowed import default_threads
from paralab.processes.mesh import Mesh, default_backend
from paralab.processes.rank import Rank, start_line

# Samples in a step when none is requested: a second or so of work on a laptop at the default size.
_GLOBAL_BATCH = {"tokens": 16, "images": 64, "points": 512}
_CPU_PROCESSES = 4

RunT = TypeVar("RunT", bound=RunConfig)


# options of a run that a model's config takes in place of its own
MODEL_OPTIONS = ("seq_len", "n_classes", "norm", "residual", "channels_last")


@dataclass(frozen=True)
class Work:
    """One run with nothing left open: what to train and how it is divided."""

    run: RunConfig
    spec: ModelSpec
    model_config: ModelConfig
    size: str
    layout: Layout
    division: Division

    @property
    def strategy(self) -> str:
        """The requested strategy where the layout is its, else the name of the layout."""
        return self.run.strategy or named.name_of(self.layout)

    @property
    def n_parameters(self) -> int:
        """Parameters of the whole model; a shared one counts once, padding counts."""
        return sum(p.numel() for p in self.new_model().parameters())

    @property
    def command(self) -> str:
        """The line that does this work again, whatever started it: nothing in it is left to be chosen.

        What it does not say: where rows go, and how a launcher was configured.
        """
        divided = {"layout"} if self.layout.world_size == 1 else {"strategy", "nproc"}
        words = flags_of(self.run, leave_out={"out", "group", "repeat", "trace", "until_decided", *divided})
        return f"paralab run {shlex.join(words)}"

    def new_model(self) -> nn.Module:
        """Return the whole model on the meta device, in the precision of its weights."""
        return self.spec.on_meta(self.model_config, weight_dtype(self.run.precision))

    def context(self, mesh: Mesh) -> BuildContext:
        return BuildContext(self.spec, self.model_config, self.run, self.layout, self.division, mesh, data=self.dataset)

    @property
    def data_name(self) -> str:
        """What to call the data in rows: its name, and the class that is left out of it."""
        name, held_out = self.run.data or self.spec.data(self.model_config), self.run.held_out_class
        return name if held_out is None else f"{name} without class {held_out}"

    @property
    def data_sha256(self) -> str:
        """Of the content of the training data, whatever its path. Raises: DataError."""
        return self.dataset().sha256

    def copies(self, device: torch.device) -> dict[str, bool]:
        """Return how batches get to a device (pin_memory, non_blocking): as requested, or what suits it.

        A copy to a GPU from memory that is not pinned waits for all that the GPU was told before.
        """
        asked = {"pin_memory": self.run.pin_memory, "non_blocking": self.run.non_blocking}
        return {name: device.type != "cpu" if value is None else value for name, value in asked.items()}

    def every_option(self, rank: Rank) -> dict[str, Any]:
        """Return the options of the run by name, with what will be used where nothing was given.

        None stands where an option has no use in this run. rank: a process of the run, or the one that will start them.
        """
        here = rank.local_world_size if rank.launcher != "python" else self.layout.world_size
        backend = self.run.backend or default_backend(rank.device.type)
        return {
            **vars(self.run),
            "data": self.run.data or self.spec.data(self.model_config),
            "seq_len": getattr(self.model_config, "seq_len", None),
            "norm": getattr(self.model_config, "norm", None),
            "residual": getattr(self.model_config, "residual", None),
            "tokenizer": getattr(self.model_config, "tokenizer", None),
            "threads": self.run.threads or default_threads(here),
            "backend": backend if self.layout.world_size > 1 else None,
            **self.copies(rank.device),
        }

    def dataset(self, split: str = "train") -> Dataset:
        """Open the data set of the run. split: "train" or "validation".

        Raises: DataError when it is missing or damaged; ConfigError for --cast-on-device where it has no compact form.
        """
        run = self.run
        text = TextOptions(column=run.text_column, streaming=run.streaming, max_tokens=run.max_tokens)
        name = run.data or self.spec.data(self.model_config)
        dataset = open_dataset(
            name, config=self.model_config, split=split, text=text, held_out_class=run.held_out_class
        )
        if run.cast_on_device and not isinstance(dataset, Compact):
            raise ConfigError(f"--cast-on-device with {name}, which is not stored as bytes or tokens: leave it out")
        return dataset

    def show_data(self, *splits: str) -> None:
        """Open these splits, and say what was found where this is the only process or rank 0. Raises: DataError.

        Called before any process is started, so that a data set that is missing or damaged is refused there.
        """
        found = dict.fromkeys(self.dataset(split).found for split in splits)
        if Rank.from_env().is_main:
            for note in self.spec.notes(self.model_config):
                print(f"model: {note}", flush=True)
            if self.run.optimizer == eight_bits.NAME:
                print(f"optimizer: {check_packed(self):.1%} of its moments take 8 bits, the others 32", flush=True)
            print(f"data: {'; '.join(found)}", flush=True)


def resolve(run: RunConfig, *, dry: bool = False) -> Work:
    """Choose what was left open and check what was requested. dry: no device is needed. Raises: UsageError."""
    _check_machine(run)
    spec = SPECS[run.model]
    size = run.size or spec.default_size
    config = _config(run, spec, size)
    rank = Rank.from_env()
    layout = _layout(run, rank)
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


def _config(run: RunConfig, spec: ModelSpec[C], size: str) -> C:
    """Return the config of the model, with the vocabulary and the classes of its data. Raises: UsageError."""
    config = _with_classes(with_tokenizer(_model_config(run, spec, size), run.tokenizer, spec, size), run, spec)
    if run.cast_on_device and config.task not in ("text", "classify"):
        raise ConfigError(
            f"--cast-on-device with {spec.name} {size}: its inputs are drawn at random before the copy, leave it out"
        )
    return config


def _division(run: RunConfig, layout: Layout, spec: ModelSpec[C], config: C) -> Division:
    """Return how the batch is divided: the requested one, or the smallest that is large enough. Raises: UsageError."""
    layout.check_schedule(run.accumulation)
    parts = layout.dp * layout.micro_batches * run.accumulation
    default_batch = -(-_GLOBAL_BATCH[spec.unit_of(config)] // parts) * parts
    division = layout.divide(run.global_batch_size or default_batch, run.accumulation)
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


def with_processes_of(run: RunT, rank: Rank) -> RunT:
    """Return a run that takes the number of its processes from the launcher, where there is one and none was given."""
    if rank.launcher == "python" or run.nproc is not None or run.layout is not None:
        return run
    return replace(run, nproc=rank.world_size)


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


def machine_processes() -> int:
    """Return how many processes suit this machine: one per GPU, or four on a CPU."""
    return torch.cuda.device_count() or _CPU_PROCESSES


def _layout(run: RunConfig, rank: Rank) -> Layout:
    if run.layout is not None:
        actual = named.name_of(run.layout)
        if run.strategy is not None and not named.stands_for(run.strategy, run.layout):
            use = f"use --strategy {actual}, or " if actual in STRATEGIES else ""
            raise LayoutError(
                f"--strategy {run.strategy} with --layout {run.layout}, which is {actual}: {use}leave one of them out"
            )
        if run.nproc is not None:
            run.layout.check_world(run.nproc)
        return run.layout
    if run.strategy == "single" and run.nproc not in (None, 1):
        raise LayoutError(f"--strategy single with --nproc {run.nproc}: use --nproc 1, or another --strategy")
    if run.strategy == "single" or (run.strategy is None and (run.nproc or machine_processes()) == 1):
        return Layout()
    strategy = run.strategy or "ddp"
    nproc = run.nproc or _processes_for(strategy)
    if nproc == rank.world_size == 1 and rank.launcher != "python" and not named.runs_alone(strategy):
        more = start_line(rank.launcher, 2, gpus=torch.cuda.is_available())
        raise LayoutError(
            f"{rank.launcher} started 1 process, and {strategy} needs 2 or more: type {more}, or use --strategy single"
        )
    return named.layout_of(strategy, nproc)


def _processes_for(strategy: str) -> int:
    return max(machine_processes(), named.find(strategy).least)


def alone(work: Work, rank: Rank) -> str | None:
    """Return what to tell about a strategy that divides, over one process; None where there is nothing to tell."""
    strategy = work.strategy
    if work.layout.world_size > 1 or strategy == "single":
        return None
    gpus = torch.cuda.device_count()
    more = start_line(rank.launcher, gpus if gpus > 1 else _CPU_PROCESSES, gpus=gpus > 1)
    if gpus == 1:
        more = (
            f"this machine has one GPU, and its CPU runs them with CUDA_VISIBLE_DEVICES= before the command and {more}"
        )
    return f"paralab: {strategy} over 1 process: nothing is divided; for more: {more}"


def _model_config(run: RunConfig, spec: ModelSpec[C], size: str) -> C:
    """Return the config of a preset, or of a size of the user's own, with the overrides of the run."""
    try:
        config = spec.config(size)
    except KeyError:
        hint, form = did_you_mean(size, spec.sizes), f", or {spec.custom_form}" if spec.custom_form else ""
        raise ConfigError(
            f"--size {size} is unknown for {spec.name}{hint}: use one of {', '.join(spec.sizes)}{form}"
        ) from None
    except ValueError as error:
        raise ConfigError(f"--size {size}: {error}: use {spec.custom_form}") from None
    known = {field.name for field in fields(config)}
    given = {name: getattr(run, name) for name in MODEL_OPTIONS}
    wanted = {name: None if value is False else value for name, value in given.items()}
    for name, value in wanted.items():
        if value is not None and name not in known:
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to {spec.name} {size}: leave it out")
    return replace(config, **{name: value for name, value in wanted.items() if value is not None})


def _check_blocks(run: RunConfig, spec: ModelSpec[C], config: C) -> None:
    """Refuse what is done to each block where a model has none. Raises: ConfigError."""
    asked = {"checkpointing": run.checkpointing, "compile": run.compile}
    for name, value in asked.items():
        if value != "none" and not spec.blocks(config):
            raise ConfigError(
                f"--{name} {value} works block by block, and {spec.name} has no blocks: put its repeated layers into "
                f"self.layers = nn.ModuleList(...), or leave --{name} out"
            )


def _with_classes(config: C, run: RunConfig, spec: ModelSpec[C]) -> C:
    """Give a model of images as many classes as its data has, unless a number was requested.

    Raises: DataError for data that cannot be read; ConfigError for a class of what has none.
    """
    if run.held_out_class is not None and not hasattr(config, "n_classes"):
        raise ConfigError(f"--held-out-class does not apply to {spec.name}, which has no classes: leave it out")
    if run.n_classes is not None or not hasattr(config, "n_classes"):
        return config
    return replace(config, n_classes=count_classes(run.data or spec.data(config)))
