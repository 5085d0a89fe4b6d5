"""What a user's own measured rows say of predictions for a measured device: `paralab plan --calibrate-from`."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from paralab.axes import eight_bits
from paralab.errors import UsageError
from paralab.layout import Layout
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.factor import Factor, factor
from paralab.planning.measured import step
from paralab.planning.measured.device import MeasuredDevice
from paralab.planning.measured.imagined import imagine
from paralab.records.reading import read
from paralab.records.row import RunRecord


def factor_of(path: Path, device: MeasuredDevice) -> Factor:
    """Return the factor from the rows of a file that succeeded and can be predicted.

    Raises: ConfigError for fewer than three such rows; DataError or UsageError for what is no file of rows.
    """
    pairs = list(_pairs(read(path), device))
    return factor([measured for measured, _ in pairs], [predicted for _, predicted in pairs])


def _pairs(rows: list[RunRecord], device: MeasuredDevice) -> Iterator[tuple[float, float]]:
    """Yield (measured, predicted) seconds of each row of a run that paralab can predict."""
    for row, predicted in predicted_rows(rows, device):
        yield row.step_time_p50_s or 0.0, predicted.step_time_s


def predicted_rows(rows: list[RunRecord], device: MeasuredDevice) -> Iterator[tuple[RunRecord, step.Predicted]]:
    """Yield each row of a run that succeeded and can be predicted, and what was expected of it.

    Not predicted are other engines than torch, compiled blocks, compressed gradients and optimizer states in 8 bits. A
    run that is there twice, as where files were put together, counts once.
    """
    for row in {row.run_id: row for row in rows}.values():
        if row.status != "ok" or row.layout is None or row.model not in SPECS:
            continue
        if not 0 < (row.step_time_p50_s or 0) < math.inf:
            continue
        if row.engine not in (None, "torch") or {row.compile, row.grad_compression} - {None, "none"}:
            continue
        if row.optimizer == eight_bits.NAME:
            continue
        try:
            spec = SPECS[row.model]
            config = spec.config(row.size)
            if row.sequence_length and hasattr(config, "seq_len"):
                config = replace(config, seq_len=row.sequence_length)
            plan = imagine(
                spec,
                config,
                Layout.parse(row.layout),
                batch=row.global_batch_size or 1,
                accumulation=row.accumulation or 1,
                run=RunConfig(
                    precision=cast("Any", row.precision or "fp32"), checkpointing=row.checkpointing or "none"
                ),
            )
        except (UsageError, KeyError, ValueError):
            continue
        yield row, step.predict(plan, device)
