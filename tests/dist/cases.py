"""What the workers run. Each function is called in every worker, with its rank first."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist
from torch import Tensor

from paralab.axes.data import ddp, zero
from paralab.axes.held import state_bytes
from paralab.axes.initialise import local, local_slice
from paralab.benchmarks.trace import trace_step
from paralab.data.dataset import Batch
from paralab.engines import native
from paralab.engines.engine import StepResult
from paralab.engines.native import NativeEngine
from paralab.errors import FitError
from paralab.layout import Layout
from paralab.measure.ledger import CommLedger, CommRow
from paralab.measure.memory import MemoryCensus, MemoryReport
from paralab.options.config import RunConfig
from paralab.parity import scope
from paralab.parity.prove import prove
from paralab.parity.reference import STEPS, References, reference_work, trace
from paralab.parity.result import ParityResult
from paralab.planning import fit
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh, make_mesh
from paralab.processes.rank import Rank

# As many blocks as most layouts have stages: under tensor parallelism a case takes as long as its blocks are many.
SHALLOW: dict[str, dict[str, Any]] = {
    "gpt2": {"size": "4x32x4v257", "seq_len": 16},
    "llama": {"size": "4x32x8/4f48v257", "seq_len": 16},
    "mixtral": {"size": "4x32x8/4e8/2f24v257", "seq_len": 16},
    "dit": {"size": "dit-mnist-4x32x4/7"},
}

ALWAYS = pytest.mark.always

_references = References()


class Begun(NamedTuple):
    """A case that trains on plain torch."""

    work: Work
    mesh: Mesh
    engine: NativeEngine
    batches: Iterator[Batch]

    def step(self) -> StepResult:
        return self.engine.step(next(self.batches))


def begun(rank: Rank, run: RunConfig, *, steps: int) -> Begun | None:
    """Begin to train a case, and take so many steps; None on ranks outside the layout."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    case = Begun(work, mesh, native.build(work.context(mesh)), training_batches(work, mesh))
    for _ in range(steps):
        case.step()
    return case


def parity_result(rank: Rank, run: RunConfig) -> ParityResult | None:
    """Train a case and compare it with one process; ranks outside the layout return None."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    return prove(work, mesh, _references.get(work, mesh))


def parity_with_fault(rank: Rank, run: RunConfig, fault: str) -> ParityResult | None:
    """Prove a case whose code a fault has changed, against a reference without it.

    fault: "module:function", which takes a monkeypatch. Ranks outside the layout return None.
    """
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    want = _references.get(work, mesh)
    module, _, function = fault.partition(":")
    with pytest.MonkeyPatch.context() as patch:
        getattr(import_module(module), function)(patch)
        return prove(work, mesh, want)


def parity_result_where_little_is_free(rank: Rank, run: RunConfig, free_bytes: int) -> tuple[str, ParityResult | None]:
    """Prove what fits of a case into so much memory; return how much that is. Ranks outside the layout take no part."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return "", None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope, "memory_available_bytes", lambda: free_bytes if rank.is_main else 0)
        proof = scope.prove_on(work, mesh, rank, _references)
    if proof.work is None or proof.want is None:
        return proof.scope, None
    return proof.scope, prove(proof.work, mesh, proof.want)


def refusal(rank: Rank, run: RunConfig, free_bytes: list[int]) -> str | None:
    """Return with what words a run is refused where each rank finds so much memory free; two machines of four ranks."""
    there = replace(rank, local_rank=rank.rank % 4, local_world_size=4, launcher="torchrun")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "memory_available_bytes", lambda: free_bytes[rank.rank])
        try:
            fit.agree(resolve(run), there, force=run.force)
        except FitError as error:
            return str(error)
    return None


def parity_result_with_small_buckets(rank: Rank, run: RunConfig) -> ParityResult | None:
    """Do the same with collectives of a few parameters each, as in a model that does not fit into one bucket."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp, "BUCKET_BYTES", 10_000)
        patch.setattr(zero, "IN_PLACE_BYTES", 10_000)
        return parity_result(rank, run)


def buffer_difference(rank: Rank, run: RunConfig) -> tuple[int, float]:
    """Train a case and one process; return how many buffers this rank holds and their largest absolute difference."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return 0, 0.0
    sent: list[dict[str, Tensor] | None] = [None]
    if rank.is_main:
        alone, _ = trace(reference_work(work), Mesh(Layout(), rank.device), steps=STEPS)
        sent = [dict(alone.parts[0].named_buffers())]
    dist.broadcast_object_list(sent, src=0, group=mesh.world)
    (want,) = sent
    assert want is not None
    engine, _ = trace(work, mesh, steps=STEPS)
    differences = [
        (local(buffer) - local_slice(want[name], buffer)).abs().max().item()
        for part in engine.parts
        for name, buffer in part.named_buffers()
    ]
    return len(differences), max(differences, default=0.0)


def state_memory(rank: Rank, run: RunConfig) -> tuple[int, int] | None:
    """Return the measured and the predicted peak of the model's state; ranks outside the layout return None."""
    if (case := begun(rank, run, steps=1)) is None:
        return None
    with MemoryCensus(case.engine.parts, case.engine.optimizers, held=case.engine.held) as census:
        case.step()
    return census.report().state_peak_bytes, state_bytes(case.work).everywhere


def traced(rank: Rank, run: RunConfig, path: str) -> list[CommRow]:
    """Write a trace of the third step; return what the ledger counts in the fourth. Ranks outside return nothing."""
    if (case := begun(rank, run, steps=2)) is None:
        return []
    trace_step(case.engine, case.batches, case.mesh, path, step=2)
    with CommLedger(case.mesh.groups()) as ledger:
        case.step()
    return ledger.rows()


def looked_inside(rank: Rank, run: RunConfig) -> tuple[MemoryReport, list[CommRow]] | None:
    """Return memory and bytes of one step, as `paralab run` looks at them; ranks outside the layout return None."""
    if (case := begun(rank, run, steps=2)) is None:  # in which shapes and DDP's buckets settle
        return None
    with CommLedger(case.mesh.groups()) as ledger:
        case.step()
    with MemoryCensus(case.engine.parts, case.engine.optimizers, held=case.engine.held) as census:
        case.step()
    return census.report(), ledger.rows()
