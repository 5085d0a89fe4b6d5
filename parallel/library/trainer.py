"""What trains a module of one's own: optimizer steps, rows of batches, checkpoints."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DistributedSampler

from paralab import engines
from paralab.axes import used
from paralab.data.dataset import Batch
from paralab.engines.engine import StepResult
from paralab.engines.native import NativeEngine
from paralab.errors import DataError, DivergedError, LayoutError
from paralab.layout import Layout
from paralab.library import values as own_values
from paralab.library.batches import Form, flatten, rebuilt, rows_of
from paralab.library.own import Forward, forward_of
from paralab.library.sharding import agreed, division_of
from paralab.library.work import OwnRun, OwnWork
from paralab.library.world import World
from paralab.processes.mesh import Mesh


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
            if not agreed(found, count, self.mesh):
                return
            assert found is not None and self.form is not None
            count += 1
            division = division_of(self.layout, len(found), self.run.accumulation)
            yield rebuilt(rows_of(found, division, self.mesh.rank("dp")), self.form)

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
