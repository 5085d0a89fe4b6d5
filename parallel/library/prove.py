"""Prove that a layout computes, of a program's own model, what one process computes."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch.distributed as dist

from paralab.data.dataset import Batch
from paralab.errors import ConfigError, DataError
from paralab.library import values as own_values
from paralab.library.batches import flatten, rows_of
from paralab.library.own import dropouts
from paralab.library.sharding import agreed, division_of
from paralab.library.trainer import Trainer
from paralab.library.work import OwnWork
from paralab.options.choices import Precision
from paralab.parity.prove import judge, named
from paralab.parity.reference import reference, trace
from paralab.parity.result import ParityResult
from paralab.parity.tolerances import TOLERANCES
from paralab.parity.watching import Drawn, Narrowed, line_of_program
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh


def prove(
    trainer: Trainer, batches: Iterable[Any], *, steps: int = 3, precision: Precision | None = None
) -> ParityResult:
    """Compare some steps of a layout with the same steps in one process, on the program's own model. Collective.

    Both begin with the values that the trainer has now, and with a new optimizer; the trainer stays as it is. The
    scheduler is left out, and where an optimizer has `eps` it is 1e-5 at least, so that rounding is not enlarged. Rank
    0 trains the reference; a second copy of this rank's share is needed beside the trainer's.

    batches: global batches, the same on every rank; they are taken in turn until there are enough. steps: optimizer
    steps. precision: of the check, by default fp64 for a trainer in fp32: what differs then is not rounding. A model
    that itself computes parts in fp32 is held to the tolerance of fp32.
    Returns: the largest differences of loss, gradient norm and parameters, and whether they are within tolerance; where
    they are not, also the first layer, gradient or update that differs (`first`), from the steps taken once more.
    Raises: ConfigError where the model draws random numbers that the layout draws otherwise; DataError without batches.
    """
    work, mesh = _work(trainer, precision), trainer.mesh
    _check_random(trainer, work)
    flat = [_flat(trainer, batch) for batch in batches]
    if not flat:
        raise DataError("prove() got no batches: give it at least one global batch")
    for number, one in enumerate(flat):
        agreed(one, number, mesh)

    def feed(work: Work, mesh: Mesh) -> Iterator[Batch]:
        for batch in cycle(flat):
            division = division_of(work.layout, len(batch), work.run.accumulation)
            yield rows_of(batch, division, mesh.rank("dp")).to(mesh.device)

    traced: list[Any] = [None]
    if trainer.world.is_main:
        narrowed, drawn = Narrowed(), Drawn(line_of_program)
        watched = replace(work, brought=replace(work.brought, around=(narrowed, drawn)))
        want = reference(watched, mesh, steps=steps, feed=feed, start=work.brought.values)
        traced = [(want, narrowed.seen, drawn.found)]
    if mesh.world is not None:
        dist.broadcast_object_list(traced, src=0, group=mesh.world)
    want, narrow, random = traced[0]
    for line, operation in random.items():
        _refuse_random(f"{line} draws random numbers in forward ({operation})", "Leave it out of", trainer, work)
    engine, got = trace(work, mesh, steps=steps, feed=feed)
    tolerance = TOLERANCES["fp32"] if narrow and work.run.precision == "fp64" else None
    want = replace(want, start=dict(work.brought.values or {}))
    result = judge(engine, got, want, work, mesh, tolerance=tolerance)
    del engine  # its memory is needed where something differs
    return named(result, work, mesh, feed=feed, steps=steps)


def _work(trainer: Trainer, precision: Precision | None) -> OwnWork:
    """Return the work of a trainer, with the values that it has now on every rank. Collective."""
    work = trainer.work
    now = own_values.gathered(trainer.engine.parts, work.brought.every, trainer.mesh)
    brought = replace(work.brought, values=now, everywhere=True, drawn=False, judged=True)
    wanted = precision or ("fp64" if work.run.precision == "fp32" else work.run.precision)
    return replace(work, brought=brought, run=replace(work.run, precision=wanted))


def _flat(trainer: Trainer, batch: Any) -> Batch:
    rows, form = flatten(batch, has_loss=trainer.has_loss)
    trainer.form = trainer.form or form
    if form != trainer.form:
        raise DataError("a batch of another form than the first one: the same tensors are needed in every batch")
    return rows


def _check_random(trainer: Trainer, work: OwnWork) -> None:
    """Raise ConfigError where dropout would draw other numbers in one process than it does under the layout."""
    for name in dropouts(work.new_model()):
        _refuse_random(f"{name} drops at random", "Set its p to 0 in", trainer, work)


def _refuse_random(what: str, todo: str, trainer: Trainer, work: OwnWork) -> None:
    """Raise ConfigError unless the layout leaves all samples and layers together, as one process does."""
    layout = trainer.layout
    if layout.dp == layout.cp == layout.pp == 1 and work.division.chunks == 1:
        return
    why = "each stage and micro-batch draws in its turn"
    if layout.dp > 1 or layout.cp > 1:
        why = f"each {'data' if layout.dp > 1 else 'context'} rank draws numbers of its own"
    raise ConfigError(
        f"{what}, and under {layout} {why}: no two layouts compute the same with it. {todo} a model made for prove(); "
        "the training itself may keep it"
    )
