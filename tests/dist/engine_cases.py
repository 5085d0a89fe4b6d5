"""Certificates of engines, for workers and for scripts under a launcher."""

from itertools import islice

from parallel import cluster, engines, parity
from parallel.cluster import Mesh, Rank
from parallel.config import RunConfig
from parallel.parity import Certificate, Trace
from parallel.resolve import Work, resolve

STEPS = 3
_references: dict[tuple, Trace] = {}


def certificate(rank: Rank, run: RunConfig, engine: str, ds_config: str | None = None) -> tuple[str, Certificate]:
    """Train a case with an engine and compare it with one process; return the engine's class as well."""
    work = resolve(run)
    return certify(work, cluster.make_mesh(work.layout, rank.device), engine, ds_config)


def certify(work: Work, mesh: Mesh, engine: str, ds_config: str | None) -> tuple[str, Certificate]:
    key = parity.reference_key(work)
    if key not in _references:
        _references[key] = parity.reference(work, mesh, steps=STEPS)
    built = engines.build(work.context(mesh), engine, ds_config=ds_config)
    results = [built.step(batch) for batch in islice(parity.training_batches(work, mesh), STEPS)]
    got = Trace([r.loss.item() for r in results], [r.grad_norm.item() for r in results])
    return type(built).__name__, parity.certify(built, got, _references[key], work, mesh)
