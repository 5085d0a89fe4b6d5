"""What the workers run. Each function is called in every worker, with its rank first."""

import torch.distributed as dist

from models import SPECS
from models.gpt2 import GPT2Config
from parallel import cluster, parity
from parallel.cluster import Mesh, Rank
from parallel.config import RunConfig
from parallel.initialise import local, local_slice
from parallel.layout import Layout
from parallel.parity import Certificate, Trace
from parallel.resolve import Work, resolve

# The real vocabulary, padded from 50,257 to 50,304 rows; and a small one whose last rank of eight holds only padding.
SPECS["gpt2"].sizes["vocabulary"] = GPT2Config(n_layers=2, hidden=16, n_heads=8, seq_len=8)  # type: ignore[index]
SPECS["gpt2"].sizes["padding"] = GPT2Config(  # type: ignore[index]
    n_layers=2, hidden=16, n_heads=8, seq_len=8, vocab_size=257, tokenizer="bytes"
)

_references: dict[tuple, Trace] = {}


def certificate(rank: Rank, run: RunConfig) -> Certificate | None:
    """Train a case and compare it with one process; ranks outside the layout return None."""
    work = resolve(run)
    want = _reference(rank, work)
    mesh = cluster.make_mesh(work.layout, rank.device)
    return parity.prove(work, mesh, want) if rank.rank < work.layout.world_size else None


def _reference(rank: Rank, work: Work) -> Trace:
    """Train the reference on rank 0, once for all cases that share it."""
    key = parity.reference_key(work)
    if key not in _references:
        traced = [parity.reference(work, Mesh(Layout(), rank.device)) if rank.is_main else None]
        dist.broadcast_object_list(traced, src=0)
        _references[key] = traced[0]
    return _references[key]


def buffer_difference(rank: Rank, run: RunConfig) -> tuple[int, float]:
    """Train a case and one process; return how many buffers this rank holds and their largest absolute difference."""
    work = resolve(run)
    mesh = cluster.make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return 0, 0.0
    alone, _ = parity.trace(parity.reference_work(work), Mesh(Layout(), rank.device), steps=parity.STEPS)
    engine, _ = parity.trace(work, mesh, steps=parity.STEPS)
    want = dict(alone.parts[0].named_buffers())
    differences = [
        (local(buffer) - local_slice(want[name], buffer)).abs().max().item()
        for part in engine.parts
        for name, buffer in part.named_buffers()
    ]
    return len(differences), max(differences, default=0.0)

