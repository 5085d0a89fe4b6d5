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
from paralab.planning.work import Work
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
    return {
        "run_id": requested.run_id,
        "group": requested.group,
        "repeat": requested.repeat,
        "until_decided_percent": requested.until_decided_percent,
        "started_at": requested.started.iso,
        "command": requested.command,
        "launcher": requested.launcher,
        "device": device.type,
        "backend": dist.get_backend() if dist.is_initialized() and work.layout.world_size > 1 else None,
        "nodes": nodes_of(work, rank),
        **_division(work, requested),
        **_options(work, requested, device),
        **_model(work),
        **_data(work),
        **vars(replace(Environment.read(device.index or 0), threads=torch.get_num_threads())),
    }


def _division(work: Work, requested: Requested) -> dict[str, Any]:
    """Return what of the division was requested, and what it is."""
    return {
        "strategy_requested": requested.strategy or work.strategy,
        "strategy": work.strategy,
        "layout_requested": requested.layout,
        "layout": str(work.layout),
        "world_size_requested": requested.nproc,
        "world_size": work.layout.world_size,
        "zero_requested": requested.zero,
        **{name: value for axis in words.AXES for name, value in axis.columns(work.layout).items()},
        "micro_batch_size": work.division.micro_batch_size,
        "accumulation": work.run.accumulation,
        "global_batch_size": work.division.global_batch_size,
    }


def _options(work: Work, requested: Requested, device: torch.device) -> dict[str, Any]:
    """Return the options of the run: of the engine and the precision what was requested too."""
    run = work.run
    return {
        "engine_requested": requested.engine,
        "engine": run.engine,
        "precision_requested": requested.precision,
        "precision": run.precision,
        "grad_compression": run.grad_compression,
        "outer_optimizer": run.outer_optimizer if work.layout.local else None,
        "outer_fragments": run.outer_fragments if work.layout.local else None,
        "outer_overlap": run.outer_overlap if work.layout.local else None,
        "checkpointing": run.checkpointing,
        "compile": run.compile,
        "offload": engines.offloaded(run.ds_config, work.layout),
        "loader_workers": run.loader_workers,
        **work.copies(device),
        "cast_on_device": run.cast_on_device,
        "optimizer": run.optimizer,
        "seed": run.seed,
        "epochs_requested": getattr(run, "epochs", None),  # of a training run
    }


def _model(work: Work) -> dict[str, Any]:
    """Return the columns of the model: unknown where its config has no such field."""
    config = work.model_config
    return {
        "model": work.spec.name,
        **file_columns(work.run.model),
        "size": work.size,
        "parameters": work.n_parameters,
        "unit": work.spec.unit_of(config),
        "sequence_length": getattr(config, "seq_len", None),
        "vocabulary": getattr(config, "vocab_size", None),
        "image_size_px": getattr(config, "image_size", None),
        **{name: getattr(config, name, None) for name in ("n_classes", "norm", "residual", "channels_last")},
    }


def _data(work: Work) -> dict[str, Any]:
    """Return the columns of the training data. Raises: DataError."""
    dataset = work.dataset()
    return {
        "tokenizer": getattr(dataset, "tokenizer", None),
        "data": work.data_name,
        "data_sha256": dataset.sha256,
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
