"""The columns of a row that are known before the first step, and the row of a run that failed."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paralab import engines
from paralab.errors import RankError, WriteError
from paralab.layout import words
from paralab.models import file_columns
from paralab.planning.resolve import Work
from paralab.processes.failure import Failure
from paralab.processes.rank import Rank
from paralab.records.environment import Environment
from paralab.records.of_axes import with_axes
from paralab.records.reading import read
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.writing import append


def describe(work: Work, requested: Requested, rank: Rank, device: torch.device) -> dict[str, Any]:
    """Return the columns known before the first step: identity, what was requested and realised, work, environment."""
    run, layout, config = work.run, work.layout, work.model_config
    dataset = work.dataset()
    return {
        "run_id": requested.run_id,
        "group": requested.group,
        "repeat": requested.repeat,
        "until_decided_percent": requested.until_decided_percent,
        "started_at": requested.started.iso,
        "command": requested.command,
        "strategy_requested": requested.strategy or work.strategy,
        "strategy": work.strategy,
        "layout_requested": requested.layout,
        "layout": str(layout),
        "engine_requested": requested.engine,
        "engine": run.engine,
        "launcher": requested.launcher,
        "device": device.type,
        "backend": dist.get_backend() if dist.is_initialized() and layout.world_size > 1 else None,
        "world_size_requested": requested.nproc,
        "world_size": layout.world_size,
        "nodes": nodes_of(work, rank),
        "zero_requested": requested.zero,
        **{name: value for axis in words.AXES for name, value in axis.columns(layout).items()},
        "precision_requested": requested.precision,
        "precision": run.precision,
        "grad_compression": run.grad_compression,
        "outer_optimizer": run.outer_optimizer if layout.local else None,
        "outer_fragments": run.outer_fragments if layout.local else None,
        "checkpointing": run.checkpointing,
        "compile": run.compile,
        "offload": engines.offloaded(run.ds_config, layout),
        "channels_last": getattr(config, "channels_last", None),
        "loader_workers": run.loader_workers,
        **work.copies(device),
        "cast_on_device": run.cast_on_device,
        "model": work.spec.name,
        **file_columns(run.model),
        "size": work.size,
        "parameters": work.n_parameters,
        "unit": work.spec.unit_of(config),
        "sequence_length": getattr(config, "seq_len", None),
        "tokenizer": getattr(dataset, "tokenizer", None),
        "vocabulary": getattr(config, "vocab_size", None),
        "image_size_px": getattr(config, "image_size", None),
        "n_classes": getattr(config, "n_classes", None),
        "norm": getattr(config, "norm", None),
        "residual": getattr(config, "residual", None),
        "micro_batch_size": work.division.micro_batch_size,
        "accumulation": run.accumulation,
        "global_batch_size": work.division.global_batch_size,
        "optimizer": run.optimizer,
        "seed": run.seed,
        "data": work.data_name,
        "data_sha256": dataset.sha256,
        "epochs_requested": getattr(run, "epochs", None),  # of a training run
        **vars(replace(Environment.read(device.index or 0), threads=torch.get_num_threads())),
    }


def nodes_of(work: Work, rank: Rank) -> int:
    """Return the number of machines that the ranks of a run are on."""
    return max(1, -(-work.layout.world_size // rank.local_world_size))


def failed(work: Work, requested: Requested, rank: Rank, failure: Failure) -> RunRecord:
    """Return the row of a run that failed."""
    values = describe(work, requested, rank, rank.device) | {
        "status": failure.status,
        "failed_rank": failure.rank,
        "failed_step": failure.step,
        "reason": failure.reason,
    }
    return RunRecord(**with_axes(values))


def record_failure(rows: str | Path, work: Work, requested: Requested, rank: Rank, error: RankError) -> None:
    """Append the row of a run that failed, unless one of its ranks has; called by the process that started them.

    A row that cannot be written is said, and does not hide what failed.
    """
    path = Path(rows)
    if path.exists() and path.stat().st_size and any(row.run_id == requested.run_id for row in read(path)):
        return
    try:
        append(path, failed(work, requested, rank, Failure(None, None, "crash", error.reason or str(error))))
    except WriteError as unwritten:
        print(f"paralab: this failure has no row: {unwritten}", file=sys.stderr)
