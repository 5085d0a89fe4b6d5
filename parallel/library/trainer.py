"""Train a module of one's own under any layout: `parallelize` splits it, a `Trainer` takes its steps."""

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DistributedSampler

from paralab import engines
from paralab.axes import used
from paralab.axes.check import check_split
from paralab.data.dataset import Batch
from paralab.engines.engine import StepResult
from paralab.engines.native import NativeEngine
from paralab.errors import ConfigError, DataError, DivergedError, LayoutError, WorldError, did_you_mean
from paralab.layout import Division, Layout
from paralab.layout import strategies as named
from paralab.library import advice
from paralab.library import values as own_values
from paralab.library.batches import Form, flatten, rebuilt, rows_of
from paralab.library.optimizer import MakeOptimizer, MakeScheduler, check_asked
from paralab.library.own import Forward, Initialise, Loss, OwnConfig, check_stages, forward_of, spec_of
from paralab.library.pipeline import Pipeline
from paralab.library.work import Brought, OwnRun, OwnWork
from paralab.library.world import World
from paralab.models.spec import ModelSpec, Style
from paralab.options.choices import CompileMode, Precision
from paralab.processes import cluster
from paralab.processes.cluster import Mesh

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
    example: Any = None,
    initialise: Initialise | None = None,
    precision: Precision = "fp32",
    accumulation: int = 1,
    clip_norm: float | None = None,
    checkpointing: Literal["none", "full"] | int = "none",
    compile: CompileMode = "none",
    unused_parameters: bool = False,
    seed: int = 0,
) -> "Trainer":
    """Split a module over the processes as a layout says, and return what trains it. Collective.

    model: the module, with the values it has on rank 0; or a function that makes it, which on other ranks runs on the
    meta device where it can, so that they never hold a whole copy. Its parameters are trained in fp32 (fp64 under that
    precision), and its `state_dict` names stay. The module that was passed is not to be used afterwards.
    layout: such as "dp4/zero3" or "dp2.tp2", or a strategy such as "zero3", which takes all processes.
    loss: loss(output, targets) -> the mean over the samples, shape (); a dict of such means is trained on their sum.
    Without it the module returns its loss itself: a tensor of shape (), or an output with `.loss` or ["loss"]. It gets
    floating-point outputs in fp32 at least.
    optimizer: a class, or a function of the list of parameters; the list has `named`, pairs of (name, parameter), for
    parameter groups. scheduler: a function of the optimizer; its `step()` is called after each update.
    blocks: a pattern such as "encoder.layers.*" of the repeated layers, by which ZeRO gathers and checkpointing and
    compile work; found by itself where they are one ModuleList. tensor: for tensor parallelism, pattern of a module ->
    "column" or "row" (paralab.models.spec.Style). pipeline: for pipeline stages, what runs before and after the blocks.
    example: a batch (all rows of it), whose shapes pipeline stages have to know.
    initialise: initialise(name, tensor, generator) gives a whole tensor its values, from which every rank takes its
    piece: for models that no process could hold. accumulation: backward passes per step. clip_norm: of the gradient
    over all ranks. checkpointing: recompute the activations of no block, of all ("full"), or of every n-th.
    compile: mode of torch.compile, for each block. unused_parameters: whether a step may leave parameters without a
    gradient, which data ranks would otherwise wait for.

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
    trainer = Trainer(world, run, split, has_loss=loss is not None)
    batch = trainer._seen(example) if example is not None else None
    architecture = own_values.digest(skeleton)
    spec: ModelSpec[OwnConfig] = spec_of(
        skeleton,
        name=type(skeleton).__name__,
        loss=loss,
        initialise=initialise,
        blocks=blocks,
        tensor=tensor or {},
        pipeline=pipeline,
        form=lambda: trainer.form,
        example=example_of(batch) if batch is not None else None,
        architecture=architecture,
    )
    config = spec.config()
    check_axes(split, spec, config, skeleton, pipeline)
    brought = Brought(
        own_values.tensors_of(skeleton),
        optimizer,
        scheduler,
        seed,
        unused_parameters=unused_parameters,
        values=values,
        drawn=initialise is not None,
        spec=spec,
        config=config,
    )
    mesh = cluster.make_mesh(split, world.device)
    _check_alike(architecture, mesh)
    _draw_alike(before, mesh)
    rows = len(batch) if batch is not None else split.dp * split.micro_batches * accumulation
    work = OwnWork(run, spec, config, "own", split, division_of(split, rows, accumulation), brought)
    trainer._build(work, mesh)
    return trainer


@dataclass(frozen=True)
class Step:
    """What one optimizer step gave, equal on every rank. Reading a number waits for the device.

    result: loss and gradient norm as tensors of shape (), fp32. terms: those of a loss that has several, by name.
    """

    result: StepResult
    terms: Mapping[str, float]

    @property
    def loss(self) -> float:
        """The mean loss of the global batch."""
        return self.result.loss.item()

    @property
    def grad_norm(self) -> float:
        """The norm of the gradient over all parameters, before clipping."""
        return self.result.grad_norm.item()


class Trainer:
    """Trains the piece of a module that lies on this rank; `parallelize` makes it.

    layout: what it runs under. engine: what takes the steps (`paralab.engines.native`). form: how the tensors of a
    batch lie in it, once one was seen.
    """

    engine: NativeEngine
    work: OwnWork
    mesh: Mesh

    def __init__(self, world: World, run: OwnRun, layout: Layout, *, has_loss: bool) -> None:
        self.world, self.run, self.layout, self.has_loss = world, run, layout, has_loss
        self.form: Form | None = None

    def _build(self, work: OwnWork, mesh: Mesh) -> None:
        self.work, self.mesh = work, mesh
        built = engines.build(work.context(mesh), "torch")
        assert isinstance(built, NativeEngine)
        self.engine = built
        work.brought.values = None  # every rank has its own by now

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken since the beginning of the training, those before `load` included."""
        return self.engine.steps_done

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The program's optimizer, over what this rank updates."""
        return self.engine.optimizer

    def step(self, *batch: Any) -> Step:
        """Take this rank's rows of the global batch, and update the parameters once. Collective.

        batch: inputs and targets, or one batch of any form. `shard` yields such rows.
        Raises: DataError for rows that do not divide into micro-batches; DivergedError where the loss is not finite.
        """
        if len(batch) not in (1, 2):
            raise DataError(f"step() got {len(batch)} arguments: give inputs and targets, or one batch")
        rows = self._seen(batch[0] if len(batch) == 1 else batch)
        chunks = self.work.division.chunks
        if len(rows) % chunks:
            raise DataError(
                f"a rank got {len(rows)} rows for {chunks} micro-batches: give a multiple of {chunks}, or use shard()"
            )
        if self.layout.pp > 1 and len(rows) // chunks != self.work.division.micro_batch_size:
            raise DataError(
                f"a rank got {len(rows)} rows, and the stages of the pipeline were made for "
                f"{self.work.division.micro_batch_size * chunks}, as in the example: use drop_last=True in the loader"
            )
        forwards = self._forwards()
        for forward in forwards:
            forward.form, forward.noted = self.form, {}
        result = self.engine.step(rows.to(self.mesh.device))
        step = Step(result, self._terms(forwards))
        if self.mesh.device.type == "cpu" and not torch.isfinite(result.loss):
            raise DivergedError(
                f"the loss of step {self.steps_done - 1} is {step.loss}: use a lower learning rate or clip_norm, or "
                "look at the batch"
            )
        return step

    def _forwards(self) -> list[Forward]:
        return [forward_of(part) for part in self.engine.parts]

    def _terms(self, forwards: list[Forward]) -> dict[str, float]:
        """Return the terms of a loss that has several, as means over the global batch. Collective where there are."""
        noted = {name: torch.stack(terms).mean() for f in forwards for name, terms in f.noted.items()}
        if self.mesh.world is None:
            return {name: value.item() for name, value in noted.items()}
        every: list[dict[str, float]] = [{} for _ in range(self.layout.world_size)]
        if self._has_terms(bool(noted)):
            dist.all_gather_object(every, {n: v.item() for n, v in noted.items()}, group=self.mesh.world)
        names = {name: None for terms in every for name in terms}
        return {name: sum(held := [terms[name] for terms in every if name in terms]) / len(held) for name in names}

    def _has_terms(self, here: bool) -> bool:
        """Return whether any rank notes terms; asked once, at the first step."""
        if not hasattr(self, "_several"):
            answers: list[bool] = [False] * self.layout.world_size
            dist.all_gather_object(answers, here, group=self.mesh.world)
            self._several = any(answers)
        return self._several

    def _seen(self, batch: Any) -> Batch:
        rows, form = flatten(batch, has_loss=self.has_loss)
        if self.form is not None and form != self.form:
            raise DataError("a batch of another form than the first one: the same tensors are needed in every batch")
        self.form = form
        return rows

    def save(self, folder: str | Path, *, keep_last: int = 3) -> Path:
        """Save a checkpoint; the same as `paralab.save(trainer, folder)`. Collective. Raises: DataError."""
        from paralab.library import checkpoint

        return checkpoint.save(self, folder, keep_last=keep_last)

    def load(self, path: str | Path) -> int:
        """Go on from a checkpoint; the same as `paralab.load(trainer, path)`. Collective.

        Raises: DataError, ConfigError.
        """
        from paralab.library import checkpoint

        return checkpoint.load(self, path)

    # --- data

    def shard(self, batches: Iterable[Any], *, skip: int = 0) -> Iterator[Any]:
        """Yield this rank's rows of each global batch, in the form that the batch has. Collective.

        batches: the same on every rank: a loader, or any iterable. Ranks of the tensor and pipeline axes that work on
        the same samples get the same rows. A loader with a DistributedSampler gives rows of its own to every rank:
        pass its batches to `step`. skip: batches to pass over first, as after `load`.
        Raises: DataError where ranks read different batches, where one ends before another, or where the rows do not
        divide over the data ranks.
        """
        if self.world.size > 1 and isinstance(getattr(batches, "sampler", None), DistributedSampler):
            raise DataError(
                "the loader has a DistributedSampler, which gives every rank rows of its own: leave it out, since "
                "shard() divides each batch itself, or pass the batches to step()"
            )
        iterator = islice(iter(batches), skip, None)
        count = skip
        while True:
            batch = next(iterator, _END)
            found = self._seen(batch) if batch is not _END else None
            if not self._agreed(found, count):
                return
            assert found is not None and self.form is not None
            count += 1
            division = division_of(self.layout, len(found), self.run.accumulation)
            yield rebuilt(rows_of(found, division, self.mesh.rank("dp")), self.form)

    def _agreed(self, batch: Batch | None, count: int) -> bool:
        """Return whether there is a batch, on every rank the same. Collective. Raises: DataError."""
        if self.mesh.world is None:
            return batch is not None
        mine = torch.tensor([-1 if batch is None else len(batch), 0 if batch is None else _mark(batch)])
        every = mine.new_empty(self.layout.world_size * 2)
        device = self.mesh.device if dist.get_backend(self.mesh.world) == "nccl" else torch.device("cpu")
        every = every.to(device)
        dist.all_gather_single(every, mine.to(device), group=self.mesh.world)
        rows = every.view(-1, 2).tolist()
        ended = [rank for rank, (n, _) in enumerate(rows) if n < 0]
        if len(ended) == len(rows):
            return False
        if ended:
            going = next(rank for rank, (n, _) in enumerate(rows) if n >= 0)
            raise DataError(
                f"the batches end after {count} on rank {ended[0]} and go on on rank {going}: shard() needs the same "
                "batches on every rank; pass rows that are each rank's own to step()"
            )
        if len({tuple(row) for row in rows}) > 1:
            raise DataError(
                f"batch {count} is another one on rank {next(i for i, row in enumerate(rows) if row != rows[0])} than "
                "on rank 0: shard() needs the same batches on every rank; give the loader "
                "generator=torch.Generator().manual_seed(0), or pass rows that are each rank's own to step()"
            )
        return True

    # --- the model

    def evaluate(self, *batch: Any) -> float:
        """Return the mean loss of a global batch, of which this rank gives its rows, without training. Collective.

        Raises: LayoutError for a layout with pipeline stages.
        """
        if self.layout.pp > 1:
            raise LayoutError(f"evaluate() under {self.layout}: load the checkpoint under a layout without pp")
        rows = self._seen(batch[0] if len(batch) == 1 else batch).to(self.mesh.device)
        part = self.engine.parts[0]
        forward_of(part).form = self.form
        part.eval()
        with torch.no_grad():
            loss = part(*rows.inputs, targets=rows.given).double()
            totals = torch.stack([loss * len(rows), torch.full_like(loss, len(rows))])
        part.train()
        for module in part.modules():
            if isinstance(module, FSDPModule):  # forward alone leaves parameters gathered
                module.reshard()
        if self.mesh.world is not None:
            totals /= prod(axis.loss_copies(self.layout) for axis in used(self.layout) if not axis.averages)
            dist.all_reduce(totals, group=self.mesh.world)
        return (totals[0] / totals[1]).item()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters and persistent buffers of the whole model, on the CPU of every rank. Collective.

        The names are those of the module's own `state_dict()`, whole shapes, in the dtype that they are trained in.
        """
        whole = own_values.gathered(self.engine.parts, self.work.brought.every, self.mesh)
        kept = self.work.new_model().state_dict()
        return {name: whole[name] for name in kept}


_END = object()


def _mark(batch: Batch) -> int:
    """Return a checksum of the first and the last bytes of a batch: enough to tell batches apart."""
    mark = 0
    for x in (*batch.inputs, batch.targets, *batch.more):
        for row in (x[0], x[-1]):
            flat = row.detach().reshape(-1)[:256].cpu()
            mark = zlib.crc32(flat.contiguous().view(torch.uint8).numpy().tobytes(), mark)
    return mark


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
    if layout.world_size != world.size:
        raise WorldError(
            f"layout {layout} needs {layout.world_size} processes, {world.size} started: type torchrun "
            f"--nproc-per-node {layout.world_size} and the program, or use a layout of {world.size}"
        )
    return layout


def check_axes(
    layout: Layout, spec: ModelSpec[OwnConfig], config: OwnConfig, skeleton: nn.Module, pipeline: Pipeline | None
) -> None:
    """Raise LayoutError where an axis of the layout is not told enough of the module."""
    if layout.tp > 1 and not spec.tensor_plan(config):
        raise LayoutError(advice.tensor(skeleton))
    if layout.pp > 1 and (pipeline is None or not spec.blocks(config)):
        raise LayoutError(advice.pipeline(skeleton, spec.blocks(config)))
    check_split(layout, spec=spec, config=config)
    layout.check_schedule()
    if layout.pp > 1:
        check_stages(spec.on_meta(config), spec.blocks(config))


def division_of(layout: Layout, rows: int, accumulation: int) -> Division:
    parts = layout.dp * layout.micro_batches * accumulation
    if rows % parts or not rows:
        sizes = " or ".join(str(n) for n in (rows // parts * parts, (rows // parts + 1) * parts) if n)
        raise DataError(
            f"a batch of {rows} rows does not divide by dp {layout.dp} x micro-batches {layout.micro_batches} x "
            f"accumulation {accumulation} = {parts}: use batches of {sizes} rows, and drop_last=True for the last one"
        )
    return layout.divide(rows, accumulation)


def example_of(batch: Batch) -> Callable[[int], tuple[tuple[Tensor, ...], Tensor]]:
    def example(rows: int) -> tuple[tuple[Tensor, ...], Tensor]:
        def of(x: Tensor) -> Tensor:
            return torch.zeros((rows, *x.shape[1:]), dtype=x.dtype)

        return tuple(map(of, batch.inputs)), of(batch.targets)

    return example


def _draw_alike(before: Tensor, mesh: Mesh) -> None:
    """Let ranks whose generators were alike before the module was made go on alike. Collective.

    before: the state of torch's default generator, uint8 (bytes,). Rank 0 has drawn values since, and others may not.
    """
    if mesh.world is None:
        return
    states: list[bytes] = [b""] * mesh.layout.world_size
    dist.all_gather_object(states, hashlib.sha256(before.numpy().tobytes()).digest(), group=mesh.world)
    if len(set(states)) == 1:
        state: list[Tensor] = [torch.get_rng_state()]
        dist.broadcast_object_list(state, src=0, group=mesh.world)
        torch.set_rng_state(state[0])


def _check_alike(architecture: str, mesh: Mesh) -> None:
    """Raise ConfigError where ranks have made different modules. Collective."""
    if mesh.world is None:
        return
    every: list[str] = [""] * mesh.layout.world_size
    dist.all_gather_object(every, architecture, group=mesh.world)
    if len(set(every)) > 1:
        other = next(rank for rank, found in enumerate(every) if found != every[0])
        raise ConfigError(
            f"the module of rank {other} has other names or shapes than that of rank 0: make the same one on every rank"
        )
