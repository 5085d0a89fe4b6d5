"""What the workers run."""



from parallel import cluster, parity
from parallel.cluster import Rank
from parallel.config import RunConfig
from parallel.parity import Certificate, Trace
from parallel.resolve import Work, resolve

STEPS = 3
_references: dict[tuple, Trace] = {}


def certificate(rank: Rank, run: RunConfig) -> Certificate | None:
    """Train a case and compare it with one process; ranks outside the layout return None."""
    work = resolve(run)
    mesh = cluster.make_mesh(work.layout, rank.device)
    inside = rank.rank < work.layout.world_size
    want = _reference(rank, work, mesh) if inside else None
    result = None
    if inside:
        engine, got = parity.trace(work, mesh, steps=STEPS)
        result = parity.certify(engine, got, want, work, mesh)
    return result


def _reference(rank: Rank, work: Work, mesh: cluster.Mesh) -> Trace:
    key = parity.reference_key(work)
    if key not in _references:
        _references[key] = parity.reference(work, mesh, steps=STEPS)
    return _references[key]
