"""Methods on convex functions over gloo: what they send is what is counted, and they compute what one process does."""

import pytest
import torch

from paralab.convex import measured
from paralab.convex.method import Settings
from paralab.convex.methods import LOGISTIC
from paralab.convex.reduction import CountedReduction
from paralab.convex.softmax import SoftmaxRegression, centred
from paralab.layout import Layout
from paralab.measure.ledger import CommLedger
from paralab.processes.cluster import Rank
from paralab.processes.mesh import make_mesh
from tests.dist.workers import WorkerPool


def compared(rank: Rank, name: str, ranks: int) -> tuple[float, float, float] | None:
    """Return the difference from one process, the bytes that are counted and those of the ledger."""
    mesh = make_mesh(Layout(dp=ranks), rank.device)
    if rank.rank >= ranks:
        return None
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(50, 1, 3, 3, generator=generator), torch.randint(4, (50,), generator=generator)
    reduce = CountedReduction(mesh.all_reduce("dp"), ranks=ranks, backend="gloo")
    problem = SoftmaxRegression(centred(images), labels, 4, 0.05, rank=mesh.rank("dp"), ranks=ranks, reduce=reduce)
    with CommLedger(mesh.groups()) as ledger:
        difference = measured.difference_from_one_process(
            LOGISTIC[name], problem, settings=Settings(batch=10), iterates=2
        )
    return difference, float(reduce.sent_bytes), float(ledger.wire_bytes())


@pytest.mark.parametrize(("name", "ranks"), [("gd", 2), ("minibatch", 3), ("svrg", 2), ("newton", 4)])
def test_methods_over_ranks(workers: WorkerPool, name: str, ranks: int) -> None:
    for difference, counted, sent in workers.run("tests.dist.test_optimise:compared", name, ranks)[:ranks]:
        assert difference < 1e-10
        assert counted == sent > 0
