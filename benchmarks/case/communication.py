"""Columns of what was sent, and of the bubble of a pipeline."""

import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from paralab.axes.pipeline.passes import pass_order
from paralab.axes.sent import predicted_sent
from paralab.benchmarks.case.measured import RankResult
from paralab.measure.ledger import CommRow
from paralab.measure.timeline import bubble_share, bubble_theory_share
from paralab.planning.work import Work
from paralab.processes.mesh import default_backend
from paralab.records.row import COLLECTIVES


def sent_columns(work: Work, results: list[RankResult], device_type: str) -> dict[str, Any]:
    """Return the columns of the rank that sends most in a step; results: of each rank, in their order."""
    backend = dist.get_backend() if dist.is_initialized() else default_backend(device_type)
    comm = dict(enumerate(result.comm for result in results))
    return comm_columns(work, comm, device_type=device_type, backend=backend)


def comm_columns(work: Work, comm: Mapping[int, list[CommRow]], *, device_type: str, backend: str) -> dict[str, Any]:
    """Return the columns of the rank that sends most; a rank alone sends nothing. comm: of ranks, by their number."""
    busiest = max(comm, key=lambda rank: sum(row.wire_bytes for row in comm[rank]))
    columns: dict[str, Any] = {"comm_detail_json": _calls_json(comm[busiest])}
    for row in comm[busiest]:
        for key in (f"comm_{row.axis}", f"comm_{row.op}" if row.op in COLLECTIVES else None):
            if key is None or (key == f"comm_{row.axis}" and row.axis == "other"):
                continue
            columns[f"{key}_calls"] = columns.get(f"{key}_calls", 0) + row.calls
            columns[f"{key}_payload_bytes"] = columns.get(f"{key}_payload_bytes", 0) + row.payload_bytes
            if key == f"comm_{row.axis}":
                columns[f"{key}_ring_bytes"] = columns.get(f"{key}_ring_bytes", 0.0) + float(row.ring_bytes)
                columns[f"{key}_sent_bytes"] = columns.get(f"{key}_sent_bytes", 0.0) + float(row.wire_bytes)
    if work.run.engine == "torch":
        pp_rank = busiest // (work.layout.world_size // work.layout.pp)
        sent = predicted_sent(work, pp_rank, device_type=device_type, backend=backend)
        columns |= {f"comm_{axis}_predicted_ring_bytes": float(size) for axis, size in sent.ring_bytes.items()}
        columns |= {f"comm_{axis}_predicted_sent_bytes": float(size) for axis, size in sent.wire_bytes.items()}
    return columns


def _calls_json(rows: list[CommRow]) -> str | None:
    calls: dict[str, dict[str, Any]] = {}
    for row in rows:
        calls.setdefault(row.axis, {})[row.op] = {"calls": row.calls, "payload_bytes": row.payload_bytes}
    return json.dumps(calls) if calls else None


def bubble_columns(work: Work, results: list[RankResult]) -> dict[str, Any]:
    """Columns of a pipeline: the idle share of all ranks in one step, and what its schedule makes inevitable."""
    spans = [span for result in results for span in result.spans]
    theory = bubble_theory(work)
    if theory is None:
        return {}
    return {"bubble_share": bubble_share(spans) if spans else None, "bubble_theory_share": theory}


def bubble_theory(work: Work) -> float | None:
    """Return the idle share that the schedule of a pipeline makes inevitable; None without a pipeline."""
    layout = work.layout
    if layout.schedule is None:
        return None
    return bubble_theory_share(pass_order(layout.schedule, pp=layout.pp, micro_batches=work.division.chunks))
