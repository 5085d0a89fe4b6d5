"""What `paralab plan --check` does: dry-run the layout that the plan prints, and compare its memory with the plan's."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from paralab.axes.costs import GIB
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.options.config import RunConfig
from paralab.options.flags import resolve as read_config
from paralab.planning import answers
from paralab.planning.search import Found

if TYPE_CHECKING:
    from paralab.measure.dry_run import DryRank
    from paralab.planning.shapes import Trained


def lines(found: Found, model: "Trained | None") -> Iterator[str]:
    """Yield the lines that the check prints. Raises: UsageError where the layout fails."""
    known = answers.typed(found, model) if model is not None else None
    if known is None:
        yield "Nothing to check: no layout fits that paralab trains."
        return
    i, line = known
    run = read_config(shlex.split(line)[2:], config=RunConfig)
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin(f"dry run of {run.layout}")
        counted = {name: size / GIB for name, size in fullest(run, phases).items()}
    plan = {name: float(sizes[i]) for name, sizes in found.memory_gib.items() if name != "overhead"}
    planned, there = sum(plan.values()), sum(counted.values())
    yield f"Dry run of {run.layout}: the plan is {planned / there - 1:+.0%} off in memory, overhead aside."
    yield f"  planned {planned:9,.2f} GiB: {_parts(plan)}"
    yield f"  dry run {there:9,.2f} GiB: {_parts(counted)}"
    if tried := _tried(run):
        few, more = tried
        yield f"  {few} and {more} of {_chunks(run):,} micro-batches were run; what each further one adds is added."


def _parts(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {size:,.1f}" for name, size in sizes.items() if size >= 0.05)


def fullest(run: RunConfig, phases: Phases) -> dict[str, float]:
    """Return the bytes of the fullest rank at its fullest moment, by category.

    A step of many micro-batches is not run whole: once a schedule is in its stride, every further one adds the same,
    its samples and the room that torch makes for its messages. phases: told of each rank that is done.
    """
    tried = _tried(run)
    if tried is None:
        return max(
            (dict[str, float](one.memory.peak) for one in _dry(run, phases)), key=lambda peak: sum(peak.values())
        )
    few, more = (_dry(with_chunks(run, chunks), phases) for chunks in tried)
    further = (_chunks(run) - tried[1]) / (tried[1] - tried[0])
    peaks = [
        {name: size + further * (size - one.memory.peak[name]) for name, size in other.memory.peak.items()}
        for one, other in zip(few, more, strict=True)
    ]
    return max(peaks, key=lambda peak: sum(peak.values()))


def _dry(run: RunConfig, phases: Phases) -> "list[DryRank]":
    from paralab.measure.dry_run import dry_run
    from paralab.planning.resolve import resolve

    return dry_run(resolve(run, dry=True), backend="nccl", on_rank=phases.advance)


def _chunks(run: RunConfig) -> int:
    """Return the micro-batches of a data rank in a step."""
    assert run.layout is not None
    return run.layout.micro_batches * run.accumulation


def _tried(run: RunConfig) -> tuple[int, int] | None:
    """Return two numbers of micro-batches by which a step is known; None for a step that is run whole.

    Beside a pipeline the second one adds to the gradients of the first; in one, a schedule is in its stride with twice
    as many as stages. GPipe never is.
    """
    layout = run.layout
    assert layout is not None
    piped = layout.schedule not in (None, "naive")
    stride = layout.stages if piped else 1
    few, more = 2 * stride, 3 * stride
    return None if layout.schedule == "gpipe" or _chunks(run) <= more else (few, more)


def with_chunks(run: RunConfig, chunks: int) -> RunConfig:
    """Return a run with so many micro-batches of the same size."""
    layout, batch = run.layout, run.global_batch_size
    assert layout is not None and batch is not None
    each, piped = batch // _chunks(run), layout.schedule not in (None, "naive")
    return replace(
        run,
        layout=layout.but(micro_batches=chunks) if piped else layout,
        accumulation=1 if piped else chunks,
        global_batch_size=each * chunks,
    )
