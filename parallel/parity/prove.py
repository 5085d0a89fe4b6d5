"""Train a layout for some steps and compare it with its reference."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import torch.distributed as dist

from paralab.axes.initialise import local, local_slices
from paralab.engines.engine import Engine
from paralab.parity.movement import Compared, compare, over_pieces
from paralab.parity.reference import STEPS, Feed, Trace, first_values, global_statistics, reference_work, trace
from paralab.parity.result import ParityResult
from paralab.parity.tolerances import NOISE, Tolerance, measure, tolerance_of
from paralab.planning.batches import training_batches
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh


def prove(work: Work, mesh: Mesh, want: Trace, *, steps: int = STEPS) -> ParityResult:
    """Train a layout for some steps and hold it against the reference. Collective over the ranks of the mesh."""
    engine, got = trace(work, mesh, steps=steps)
    result = judge(engine, got, want, work, mesh)
    del engine  # its memory is needed where something differs
    return named(result, work, mesh, feed=training_batches, steps=steps)


def named(result: ParityResult, work: Work, mesh: Mesh, *, feed: Feed, steps: int) -> ParityResult:
    """Return a result, where it failed with what differs first. Collective over the ranks of the mesh."""
    passed = [result.passed]
    if mesh.world is not None:  # what differs may be what ranks have to agree on
        passed = [True] * work.layout.world_size
        dist.all_gather_object(passed, result.passed, group=mesh.world)
    if all(passed):
        return result
    from paralab.parity.first import first_difference

    return replace(result, first=first_difference(work, mesh, feed=feed, steps=steps))


def judge(
    engine: Engine, got: Trace, want: Trace, work: Work, mesh: Mesh, *, tolerance: Tolerance | None = None
) -> ParityResult:
    """Compare a traced engine with its reference. Collective over the ranks of the mesh.

    tolerance: in the place of the one that the work has by its precision.
    """
    held_to, steps = tolerance or tolerance_of(work), len(got.losses)
    pieces = list(_compare(engine, want, work, steps=steps, tolerance=held_to.parameters))
    if mesh.world is not None:
        every: list = [None] * work.layout.world_size
        dist.all_gather_object(every, pieces, group=mesh.world)
        pieces = [piece for of_rank in every for piece in of_rank]
    differences = over_pieces(pieces, measure(work))
    tied = work.spec.tied_in(work.model_config)
    missing = want.parameters.keys() - {tied.get(name, name) for name in differences}
    worsts = [(difference, name) for name, difference in differences.items()] or [(0.0, "")]
    difference, worst = max(worsts)
    judged = {piece.name for piece in pieces if piece.judged}
    return ParityResult(
        steps=steps,
        loss_difference=_largest_relative(got.losses, want.losses[:steps]),
        grad_norm_difference=_largest_relative(got.grad_norms, want.grad_norms[:steps]),
        parameter_difference=difference,
        worst_parameter=worst,
        tolerance=held_to,
        parameters=len(differences),
        unjudged=len(differences.keys() - judged),
        missing=tuple(sorted(missing)),
        micro_batches=reference_work(work).run.accumulation,
    )


def _compare(engine: Engine, want: Trace, work: Work, *, steps: int, tolerance: float) -> Iterator[Compared]:
    """Yield what this rank holds of each parameter, compared with the reference."""
    how, noise = measure(work), NOISE[work.run.optimizer] * want.largest_movement
    tied, start = work.spec.tied_in(work.model_config), first_values(work, want.start)
    # one at a time: some are gathered
    for name, parameter in chain(engine.parameters(), global_statistics(engine, work)):
        piece = local(parameter.detach()).cpu()
        if piece.numel():
            end = want.parameters[tied.get(name, name)]
            yield compare(
                name,
                piece,
                where=local_slices(parameter),
                start=start(name, end),
                end=end,
                noise=noise,
                steps=steps,
                tolerance=tolerance,
                measure=how,
            )


def _largest_relative(got: list[float], want: list[float]) -> float:
    differences = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(got, want, strict=True)]
    return max((d if d == d else float("inf") for d in differences), default=0.0)
