"""What the workers run of data parallelism that sends less. Each function is called in every worker, with its rank."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes.data import compression, ddp
from paralab.axes.data.local import LocalSteps
from paralab.layout import Layout
from paralab.options.choices import GradCompression
from paralab.options.config import RunConfig
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from tests.dist.cases import begun

RANKS = 2
Named = dict[str, Tensor]


def gradients(rank: Rank, kind: GradCompression, steps: int, samples: int) -> list[tuple[Named, Named]] | None:
    """Return (what a compressed backward left, the exact average) of each step, by parameter, on two ranks."""
    mesh = make_mesh(Layout(dp=RANKS), rank.device)
    if rank.rank >= RANKS:
        return None
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 40))
    model = ddp.replicate(net, mesh=mesh)
    compression.compress(model, kind, mesh=mesh)
    found = []
    for step in range(steps):
        torch.manual_seed(10 * step + rank.rank)
        inputs = torch.randn(samples, 64)
        exact = torch.autograd.grad(net(inputs).square().sum(), list(net.parameters()))
        for grad in exact:
            dist.all_reduce(grad, group=mesh.group("dp"))
        model.zero_grad()
        model(inputs).square().sum().backward()
        got = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        found.append((got, {name: g / RANKS for name, g in zip(got, exact, strict=True)}))
    return found


def outer_steps(rank: Rank, meetings: int) -> tuple[Tensor, Tensor] | None:
    """Return parameters after some meetings of ranks that moved at random, and as torch's own SGD has them."""
    mesh = make_mesh(Layout(dp=RANKS), rank.device)
    if rank.rank >= RANKS:
        return None
    ours = nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    outer = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    meet = LocalSteps([[ours]], every=2, outer="nesterov", mesh=mesh)
    draw = torch.Generator().manual_seed(rank.rank)
    for step in range(2 * meetings):
        with torch.no_grad():
            ours.add_(torch.randn(50, generator=draw, dtype=torch.float64))
        if step % 2:
            mean = ours.detach().clone()
            dist.all_reduce(mean, group=mesh.group("dp"))
            theirs.grad = theirs.detach() - mean / RANKS
            outer.step()
        meet()
    return ours.detach(), theirs.detach()


def trained_apart(rank: Rank, run: RunConfig, steps: int) -> tuple[Named, Named] | None:
    """Return the parameters of this rank after some steps, and those that ranks last agreed on."""
    if (case := begun(rank, run, steps=steps)) is None:
        return None
    mine = {name: p.detach().clone() for name, p in case.engine.parts[0].named_parameters()}
    with case.engine.agreed():
        agreed = {name: p.detach().clone() for name, p in case.engine.parts[0].named_parameters()}
    back = dict(case.engine.parts[0].named_parameters())
    assert all(torch.equal(back[name], tensor) for name, tensor in mine.items())
    return mine, agreed


def outer_begins_at_given_values(rank: Rank, run: RunConfig) -> bool | None:
    """Return whether an engine that was given weights has agreed on these."""
    if (case := begun(rank, run, steps=0)) is None:
        return None
    shapes = {name: tensor.shape for name, tensor in case.engine.parts[0].state_dict().items()}
    case.engine.set_values(lambda name: torch.full(shapes[name], 0.5))
    with case.engine.agreed():
        return all(bool((p == 0.5).all()) for p in case.engine.parts[0].parameters())


def row(rank: Rank, run: Any) -> tuple[bool | None, str | None, str | None] | None:
    """Measure a case with parity requested; return what its row says of parity."""
    from paralab.benchmarks.case.run import run_case
    from paralab.parity.reference import References
    from paralab.parity.scope import prove_on
    from paralab.planning.resolve import resolve
    from paralab.records.requested import Requested

    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    proof = prove_on(work, mesh, rank, References())
    record = run_case(work, requested=Requested.of(run, rank), rank=rank, mesh=mesh, proof=proof)
    return record.parity, record.parity_scope, record.parity_result
