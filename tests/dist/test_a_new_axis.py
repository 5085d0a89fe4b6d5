"""An axis that no file of the project knows: its groups, its bytes and its parity on several ranks."""

import json

import pytest

from paralab.axes import register, unregister
from paralab.axes.sent import predicted_sent
from paralab.benchmarks.case.run import run_case
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.parity.reference import References
from paralab.parity.scope import prove_on
from paralab.planning.resolve import resolve
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from tests.dist.workers import WorkerPool
from tests.unit.axes.test_a_new_axis import Twins


def measured(rank: Rank, layout: str, model: str) -> tuple[RunRecord, dict[str, float]] | None:
    """Run a case whose layout has the axis; return its row and what was predicted; None on ranks outside of it."""
    axis = Twins()
    register(axis)
    try:
        run = RunConfig(
            model=model, size="tiny", layout=Layout.parse(layout), global_batch_size=8, steps=2, warmup=1, out=None
        )
        work = resolve(run)
        mesh = make_mesh(work.layout, rank.device)
        if rank.rank >= work.layout.world_size:
            return None
        assert mesh.size("tw") == 2 and mesh.group("tw").size() == 2
        proof = prove_on(work, mesh, rank, References())
        row = run_case(work, requested=Requested(), rank=rank, mesh=mesh, proof=proof)
        return row, {axis: float(sent) for axis, sent in predicted_sent(work).wire_bytes.items()}
    finally:
        unregister(axis)


@pytest.mark.parametrize(
    ("layout", "model"), [pytest.param("dp2.tw2", "gpt2", marks=pytest.mark.long), ("tp2.tw2", "gpt2")]
)
def test_it_computes_what_one_process_does_and_sends_what_it_says(workers: WorkerPool, layout: str, model: str) -> None:
    row, predicted = workers.run("tests.dist.test_a_new_axis:measured", layout, model)[0]
    assert row.parity is True and row.parity_scope == "whole"
    seen = json.loads(row.axes_json)
    assert seen["tw"] == 2 and seen["comm_tw_calls"] > 0
    assert seen["comm_tw_sent_bytes"] == seen["comm_tw_predicted_sent_bytes"] == predicted["tw"]
    assert row.memory_state_peak_bytes == pytest.approx(row.predicted_state_bytes, rel=1e-3)
