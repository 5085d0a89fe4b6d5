"""A dry run finds what a real run of the same layout finds: every byte, and the memory of the model's states."""

from typing import Any

import pytest

from paralab.layout import Layout
from paralab.measure.dry_run import dry_run
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from tests.dist.cases import SHALLOW
from tests.dist.workers import WorkerPool
from tests.tiny import TINY


def check(workers: WorkerPool, model: str, layout: str, **changes: Any) -> None:
    options = TINY[model] | SHALLOW.get(model, {}) | changes
    run = RunConfig(**options, layout=Layout.parse(layout), global_batch_size=24)
    answers = workers.run("tests.dist.cases:looked_inside", run)
    found = dry_run(resolve(run), backend="gloo")
    assert sum(dry.place.ranks for dry in found) == resolve(run).layout.world_size
    for dry in found:
        report, comm = answers[dry.place.rank]
        assert dry.comm == comm
        assert dry.memory.state_peak_bytes == pytest.approx(report.state_peak_bytes, rel=0.001)
        assert dry.memory.peak_bytes == pytest.approx(report.peak_bytes, rel=0.03)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("gpt2", "dp2.tp2.pp2/zero1/mb2"),
        ("gpt2", "pp2/zbv/mb4"),
        ("llama", "pp2/1f1b/mb4/first3"),
        ("llama", "dp4/zero3/shard2"),
        ("resnet", "dp2.tp2"),
    ],
)
def test_bytes_and_memory_are_those_of_a_real_run(workers: WorkerPool, model: str, layout: str) -> None:
    check(workers, model, layout)
