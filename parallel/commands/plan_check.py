"""What `paralab plan --check` does: dry-run the layout that the plan prints, and compare its memory with the plan's."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.options.config import RunConfig
from paralab.options.config import resolve as read_config
from paralab.planning import answers
from paralab.planning.search import Found

if TYPE_CHECKING:
    from paralab.planning.resolve import Work
    from paralab.planning.shapes import Trained

_GIB = 1 << 30


def lines(found: Found, model: "Trained | None") -> Iterator[str]:
    """Yield the lines that the check prints. Raises: UsageError where the layout fails."""
    known = answers.typed(found, model) if model is not None else None
    if known is None:
        yield "Nothing to check: no layout fits that paralab trains."
        return
    from paralab.measure import dry_run
    from paralab.planning.resolve import resolve

    i, line = known
    whole = read_config(shlex.split(line)[2:], config=RunConfig)
    work = resolve(fewer(whole), dry=True)
    count = len(dry_run.places(work))
    with Phases(Moment.now(), transient=not sys.stderr.isatty(), after_s=1.0) as phases:
        phases.begin(f"dry run of {work.layout}: {count} distinct ranks", total=count)
        ranks = dry_run.dry_run(work, backend="nccl", on_rank=phases.advance)
    missing = _chunks(whole) - work.division.chunks
    beside = {id(one): missing * of_each_chunk(work, one.place.of.get("pp", [0])[0]) for one in ranks}
    fullest = max(ranks, key=lambda one: one.memory.peak_bytes + beside[id(one)])
    counted = {name: size / _GIB for name, size in fullest.memory.peak.items()}
    counted["buffers"] += beside[id(fullest)] / _GIB
    plan = {name: float(sizes[i]) for name, sizes in found.memory_gib.items() if name != "overhead"}
    planned, there = sum(plan.values()), sum(counted.values())
    yield f"Dry run of {whole.layout}: the plan is {planned / there - 1:+.0%} off in memory, overhead aside."
    yield f"  planned {planned:9,.2f} GiB: {_parts(plan)}"
    yield f"  dry run {there:9,.2f} GiB: {_parts(counted)}"
    if missing:
        yield f"  {work.division.chunks} micro-batches ran; samples and messages of {missing:,} more are added."


def _parts(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size:,.1f}" for name, size in sizes.items() if size >= 0.05)


def _chunks(run: RunConfig) -> int:
    """Return the micro-batches of a data rank in a step."""
    assert run.layout is not None
    return run.layout.micro_batches * run.accumulation


def of_each_chunk(work: "Work", pp_rank: int) -> int:
    """Return the bytes that a pipeline rank holds through a step for each micro-batch: its samples, and room for what
    other ranks send (torch makes it for all micro-batches at once).
    """
    inputs, targets = work.spec.example(work.model_config, work.division.micro_batch_size)
    samples, layout = sum(x.nbytes for x in (*inputs, targets)), work.layout
    if layout.schedule is None:
        return samples
    from paralab.axes.pipeline.stages import boundary_shapes

    room = [sum(x.nbytes for x in shapes) for shapes in boundary_shapes(work)]
    stages, rank_of = layout.pipeline.stages_of(pp_rank, layout.pp), layout.pipeline.rank_of
    ends = [(stage - 1, stage) for stage in stages] + [(stage + 1, stage + 1) for stage in stages]
    remote = (end for other, end in ends if 0 <= other < layout.stages and rank_of(other, layout.pp) != pp_rank)
    return samples + sum(room[end] for end in remote)


def fewer(run: RunConfig) -> RunConfig:
    """Return a run with no more micro-batches than are under way at a time, as many as all of them keep there.

    Beside a pipeline those are two, of which the second adds to the gradients of the first; in one, a schedule that
    lets go of micro-batches has twice as many as stages when it is in its stride.
    """
    layout = run.layout
    assert layout is not None and run.global_batch_size is not None
    enough = 2 * layout.stages if layout.schedule not in (None, "gpipe", "naive") else 2
    if layout.schedule == "gpipe" or _chunks(run) <= enough:
        return run
    layout = layout.but(micro_batches=enough) if layout.schedule not in (None, "naive") else layout
    each = run.global_batch_size // _chunks(run)
    accumulation = 2 if layout.schedule in (None, "naive") else 1
    few = layout.micro_batches * accumulation
    return replace(run, layout=layout, accumulation=accumulation, global_batch_size=each * few)
