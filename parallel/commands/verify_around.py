"""Compare with one process what surrounds the steps of a layout: data order, validation and checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from paralab import checkpoint, engines
from paralab.data.dataset import Batch
from paralab.layout import Layout
from paralab.parity.reference import STEPS, reference_work, trace
from paralab.parity.tolerances import tolerance_of
from paralab.planning.batches import training_batches
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.training.evaluate import Evaluator

_EVALUATED = 7  # samples: no multiple of the usual numbers of ranks; at least a batch, of a loss over a whole batch


@dataclass(frozen=True)
class Agreement:
    """How far something is from what one process has, relative, and how far it may be."""

    name: str
    layout: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


def compare(work: Work, mesh: Mesh, *, validates: bool) -> list[Agreement]:
    """Compare data order, validation loss and a run that goes on in one process. Collective over the ranks of the mesh.

    validates: whether the data have a validation split.
    """
    alone, layout = reference_work(work), str(work.layout)
    allowed = tolerance_of(work).loss
    engine, _ = trace(work, mesh, steps=STEPS)
    found = [Agreement("data order", layout, _over_ranks(_data_difference(work, alone, mesh), mesh), 0.0)]
    one: Any = trace(alone, _one(mesh), steps=STEPS)[0] if _is_main(mesh) else None
    if validates:
        most = work.division.global_batch_size if work.spec.whole_batch else _EVALUATED
        got = Evaluator(work, engine, most_samples=most)().loss
        want = _from_main(Evaluator(alone, one, most_samples=most)().loss if one is not None else None, mesh)
        found.append(Agreement("validation loss", layout, abs(got - want) / abs(want), allowed))
    there, here = _resumed(work, alone, engine, mesh)
    found.append(Agreement("resumed in one process", layout, abs(there - here) / abs(here), allowed))
    return found


def _data_difference(work: Work, alone: Work, mesh: Mesh) -> float:
    """Return the largest difference between this rank's batches and its rows of those of one process.

    Over the first steps, and again from the second one, as a run that goes on reads them.
    """
    rows = torch.tensor(work.division.rows_of(mesh.rank("dp")))
    worst = 0.0
    for start_step in (0, 1):
        mine = training_batches(work, mesh, start_step=start_step)
        every = islice(training_batches(alone, _one(mesh)), start_step, None)
        for batch, whole in islice(zip(mine, every, strict=False), 2):
            for x, of in zip(_tensors(batch), _tensors(whole), strict=True):
                worst = max(worst, (x.cpu().double() - of.cpu()[rows].double()).abs().max().item())
    return worst


def _tensors(batch: Batch) -> Iterator[torch.Tensor]:
    yield from (*batch.inputs, batch.targets)


def _resumed(work: Work, alone: Work, engine: Any, mesh: Mesh) -> tuple[float, float]:
    """Return the loss of the next step in one process that goes on from a checkpoint, and under the layout itself."""
    with TemporaryDirectory(prefix="paralab-verify-") as own:
        folder = _from_main(own if _is_main(mesh) else None, mesh)
        checkpoint.save(engine, folder)
        loss = None
        if _is_main(mesh):
            one: Any = engines.build(alone.context(_one(mesh)), "torch")
            step = checkpoint.load(one, folder)
            loss = one.step(next(training_batches(alone, _one(mesh), start_step=step))).loss.item()
        there = _from_main(loss, mesh)
    here = engine.step(next(training_batches(work, mesh, start_step=STEPS))).loss.item()
    return there, here


def _one(mesh: Mesh) -> Mesh:
    return Mesh(Layout(), mesh.device)


def _is_main(mesh: Mesh) -> bool:
    return mesh.world is None or dist.get_rank() == 0


def _from_main(value: Any, mesh: Mesh) -> Any:
    sent = [value]
    if mesh.world is not None:
        dist.broadcast_object_list(sent, src=0, group=mesh.world)
    return sent[0]


def _over_ranks(difference: float, mesh: Mesh) -> float:
    every: list[Any] = [difference]
    if mesh.world is not None:
        every = [None] * mesh.layout.world_size
        dist.all_gather_object(every, difference, group=mesh.world)
    return max(every)
