"""A step runs the passes its schedule planned, in that order, and all ranks tell the time by one clock."""

from itertools import product

import pytest

from paralab.axes.pipeline.passes import pass_order
from paralab.layout import Layout
from paralab.measure.span import SpanRecord
from paralab.measure.timeline import Timeline, bubble_share
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from tests.dist.cases import begun
from tests.dist.workers import WorkerPool


def spans(rank: Rank, run: RunConfig) -> list[SpanRecord]:
    """Watch the second step of a case."""
    if (case := begun(rank, run, steps=1)) is None:
        return []
    with Timeline(case.engine.stages, case.mesh) as timeline:
        case.step()
    return timeline.spans(step=1, rank=rank.rank)


@pytest.mark.parametrize(
    "layout", ["pp2/naive", "pp2/gpipe/mb4", "pp4/mb4", "pp2/interleaved/mb4", "tp2.pp2/zbv/mb4", "pp2/dualpipev/mb4"]
)
def test_passes_follow_the_plan_on_one_clock(workers: WorkerPool, layout: str) -> None:
    accumulation = 2 if "naive" in layout else 1
    run = RunConfig(
        model="gpt2", size="tiny", layout=Layout.parse(layout), global_batch_size=16, accumulation=accumulation
    )
    work = resolve(run)
    by_rank = workers.run("tests.dist.test_timeline:spans", run)[: work.layout.world_size]
    planned = pass_order(work.layout.schedule or "", pp=work.layout.pp, micro_batches=work.division.chunks)
    for rank, seen in enumerate(by_rank):
        steps = planned[rank // work.layout.tp]
        assert [(s.kind, s.stage, s.micro_batch) for s in seen] == [
            ("B" if step.kind == "I" else step.kind, step.stage, step.micro_batch) for step in steps
        ]
    everything = [span for seen in by_rank for span in seen]
    for one, other in product(everything, repeat=2):
        if one.micro_batch != other.micro_batch or one.rank % work.layout.tp != other.rank % work.layout.tp:
            continue
        if (one.kind, other.kind, other.stage - one.stage) in (("F", "F", 1), ("B", "B", -1)):
            assert one.end_s <= other.start_s  # it waited for what the other sent
    assert 0 < bubble_share(everything) < 1
