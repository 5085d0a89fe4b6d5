"""What was requested of a run before anything was chosen, and by whom; recorded beside what became of it."""

from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import torch.distributed as dist

from paralab.console.clock import Moment
from paralab.layout import Layout
from paralab.layout.strategies import find
from paralab.options.choices import EngineChoice, Precision
from paralab.options.config import RunConfig
from paralab.processes.meeting import Launcher
from paralab.processes.rank import Rank


@dataclass(frozen=True)
class Requested:
    """What was requested, before anything was chosen, and by whom; recorded beside what became of it."""

    strategy: str | None = None
    layout: str | None = None
    engine: EngineChoice = "auto"
    nproc: int | None = None
    precision: Precision = "fp32"
    command: str | None = None
    group: str | None = None
    repeat: int | None = None
    until_decided_percent: float | None = None
    launcher: Launcher = "python"
    started: Moment = field(default_factory=Moment.now)
    run_id: str = field(default_factory=lambda: uuid4().hex[:12])

    @classmethod
    def of(cls, config: RunConfig, rank: Rank, **known: Any) -> "Requested":
        """Return what a configuration requests of the launcher of a process. known: the fields that neither says."""
        return cls(
            strategy=config.strategy,
            layout=str(config.layout) if config.layout else None,
            engine=config.engine,
            nproc=config.nproc,
            precision=config.precision,
            launcher=rank.launcher,
            **known,
        )

    @property
    def zero(self) -> int | None:
        """The ZeRO stage of the layout, else of the strategy, that was requested; None where neither was."""
        if self.layout is not None:
            return Layout.parse(self.layout).zero
        return find(self.strategy).layout(find(self.strategy).least).zero if self.strategy is not None else None


def shared(requested: Requested) -> Requested:
    """Return the request of rank 0 on all ranks: one start has one id and one beginning. Collective.

    Where a launcher has started them, each has read the command line by itself.
    """
    if not dist.is_initialized():
        return requested
    told: list[Any] = [requested]
    dist.broadcast_object_list(told, src=0)
    return told[0]
