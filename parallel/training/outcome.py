"""How a run ended, and its row."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paralab.axes import eight_bits
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.describe import describe
from paralab.records.of_axes import with_axes
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.training import epochs
from paralab.training.evaluate import Validation
from paralab.training.usage import Used


@dataclass
class Outcome:
    """How a run ended. stopped_by: the signal that did, if one did. first, last: training losses of this start."""

    step: int = 0
    stopped_by: int | None = None
    best: Validation | None = None
    best_step: int | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    last_grad_norm: float | None = None
    steps: int = 0  # taken since this start
    steps_s: float = 0.0
    waits_s: float = 0.0
    moments: tuple[int, int] = (0, 0)  # numbers of the optimizer's moments in 8 bits, and all, over all ranks

    @property
    def exit_status(self) -> int:
        return 128 + self.stopped_by if self.stopped_by else 0


def record_of(
    work: Work,
    requested: Requested,
    rank: Rank,
    mesh: Mesh,
    outcome: Outcome,
    *,
    cost: Mapping[str, Any],
    used: Used | None,
) -> RunRecord:
    """Return the row of a run that ended in order. cost: the columns of its interruptions. used: by all ranks."""
    samples_per_s = outcome.steps * work.division.global_batch_size / outcome.steps_s if outcome.steps else None
    is_text = work.spec.unit_of(work.model_config) == "tokens"
    tokens = work.spec.units_in_sample(work.model_config)
    values = dict(
        describe(work, requested, rank, mesh.device),
        status="aborted" if outcome.stopped_by else "ok",
        reason=f"stopped by {signal.Signals(outcome.stopped_by).name}" if outcome.stopped_by else None,
        **cost,
        epochs=epochs.taken(work, outcome.step),
        measured_steps=outcome.steps,
        samples_per_s=samples_per_s,
        tokens_per_s=samples_per_s * tokens if samples_per_s and is_text else None,
        data_wait_share=outcome.waits_s / outcome.steps_s if outcome.steps else None,
        **(used.columns if used is not None else {}),
        loss_first=outcome.first_loss,
        loss_last=outcome.last_loss,
        grad_norm_last=outcome.last_grad_norm,
        **eight_bits.columns(work.run, [outcome.moments]),
    )
    return RunRecord(**with_axes(values))
