"""A rank that is slow on purpose: the others wait for it, it waits for none, and the numbers say so."""

import pytest

from paralab.layout import Layout
from paralab.measure.exposed import exposed_share, straggler
from paralab.options.config import RunConfig
from tests.dist.workers import WorkerPool


@pytest.mark.parametrize("layout", ["dp2", "dp2/zero1", "dp2/zero3", "tp2", "pp2/mb2", "dp2.tp2", "dp4"])
def test_the_others_wait_for_a_slow_rank(workers: WorkerPool, layout: str) -> None:
    run = RunConfig(model="gpt2", size="tiny", layout=Layout.parse(layout), global_batch_size=8)
    slept_s = 1.0  # long against what a busy machine adds to a step
    splits = [x for x in workers.run("tests.dist.engine_cases:split_with_a_slow_rank", run, "torch", slept_s) if x]
    slow, *others = splits
    assert slow.own_s > slept_s > 2 * slow.exposed_s
    for split in others:
        assert split.exposed_s > 0.9 * slept_s > 2 * split.own_s
    slowest = straggler(splits)
    # each of the others needs less than half of what the slow rank slept
    assert slowest.rank == splits.index(slow) and slowest.ratio is not None and slowest.ratio > 2
    assert exposed_share(splits) > 0.6 * len(others) / len(splits)
