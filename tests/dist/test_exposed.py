"""A rank that is slow on purpose: the others wait for it, it waits for none, and the numbers say so."""

import pytest

from paralab.layout import Layout
from paralab.measure.straggler import exposed_share, straggler
from paralab.options.config import RunConfig
from tests.dist.workers import WorkerPool


@pytest.mark.parametrize(
    ("layout", "axes"),
    [
        ("dp2", {"dp"}),
        ("dp2/zero1", {"dp"}),
        ("dp2/zero3", {"dp"}),
        ("tp2", {"tp"}),
        ("pp2/mb2", {"pp"}),
        ("dp2.tp2", {"dp", "tp"}),  # who shares no data with the slow rank waits for who waits for it
        ("dp4", {"dp"}),
    ],
)
def test_the_others_wait_for_a_slow_rank(workers: WorkerPool, layout: str, axes: set[str]) -> None:
    run = RunConfig(model="gpt2", size="tiny", layout=Layout.parse(layout), global_batch_size=8)
    slept_s = 1.0  # long against what a busy machine adds to a step
    splits = [x for x in workers.run("tests.dist.engine_cases:split_with_a_slow_rank", run, "torch", slept_s) if x]
    slow, *others = splits
    assert slow.own_s > slept_s > 2 * slow.exposed_s
    for split in others:
        assert split.exposed_s > 0.9 * slept_s > 2 * split.own_s
        assert sum(split.waits_s.values()) == pytest.approx(split.exposed_s)
        assert sum(s for axis, s in split.waits_s.items() if axis in axes) > 0.9 * split.exposed_s
    slowest = straggler(splits)
    # each of the others needs less than half of what the slow rank slept
    assert slowest.rank == splits.index(slow) and slowest.ratio is not None and slowest.ratio > 2
    assert exposed_share(splits) > 0.6 * len(others) / len(splits)
