"""One trace of a step merged over all ranks: `paralab run --trace FILE`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from paralab.console.outputs import write_whole
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.measure.trace import StepTrace
from paralab.measure.trace_events import merged
from paralab.processes.mesh import Mesh


def trace_step(engine: Engine, batches: Iterator[Batch], mesh: Mesh, path: str, *, step: int) -> None:
    """Take a step, trace it on every rank, and have rank 0 write one file. Collective.

    Raises: UsageError where the file cannot be written.
    """
    with StepTrace(mesh, engine.stages, step=step) as seen:
        engine.step(seen.next(batches))
    mine = (_name(mesh), seen.events)
    if mesh.world is None:
        _write(path, [mine])
        return
    ranks: list[Any] | None = [None] * mesh.layout.world_size if dist.get_rank(mesh.world) == 0 else None
    dist.gather_object(mine, ranks, group=mesh.world, group_dst=0)
    if ranks is not None:
        _write(path, ranks)


def _write(path: str, ranks: list[Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), json.dumps(merged(ranks)).encode())


def _name(mesh: Mesh) -> str:
    """Return the rank with its place along each axis."""
    places = [f"{axis} {mesh.rank(axis)}" for axis in mesh.layout.factors] if mesh.world is not None else []
    rank = dist.get_rank(mesh.world) if mesh.world is not None else 0
    return f"rank {rank}" + (f" ({', '.join(places)})" if places else "")
