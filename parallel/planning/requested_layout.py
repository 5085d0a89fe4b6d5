"""Over how many processes a run goes, and as which layout, from what was typed and what started this process."""

from dataclasses import replace
from typing import TypeVar

import torch

from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout import strategies as named
from paralab.layout.strategies import STRATEGIES
from paralab.options.config import RunConfig
from paralab.planning.work import Work
from paralab.processes.rank import Rank, start_line

_CPU_PROCESSES = 4

RunT = TypeVar("RunT", bound=RunConfig)


def machine_processes() -> int:
    """Return how many processes suit this machine: one per GPU, or four on a CPU."""
    return torch.cuda.device_count() or _CPU_PROCESSES


def with_processes_of(run: RunT, rank: Rank) -> RunT:
    """Return a run that takes the number of its processes from the launcher, where there is one and none was given."""
    if rank.launcher == "python" or run.nproc is not None or run.layout is not None:
        return run
    return replace(run, nproc=rank.world_size)


def layout_of(run: RunConfig, rank: Rank) -> Layout:
    """Return the layout that was requested, or that of the strategy. Raises: LayoutError."""
    if run.layout is not None:
        actual = named.name_of(run.layout)
        if run.strategy is not None and not named.stands_for(run.strategy, run.layout):
            use = f"use --strategy {actual}, or " if actual in STRATEGIES else ""
            raise LayoutError(
                f"--strategy {run.strategy} with --layout {run.layout}, which is {actual}: {use}leave one of them out"
            )
        if run.nproc is not None:
            run.layout.check_world(run.nproc)
        return run.layout
    if run.strategy == "single" and run.nproc not in (None, 1):
        raise LayoutError(f"--strategy single with --nproc {run.nproc}: use --nproc 1, or another --strategy")
    if run.strategy == "single" or (run.strategy is None and (run.nproc or machine_processes()) == 1):
        return Layout()
    strategy = run.strategy or "ddp"
    nproc = run.nproc or _processes_for(strategy)
    if nproc == rank.world_size == 1 and rank.launcher != "python" and not named.runs_alone(strategy):
        more = start_line(rank.launcher, 2, gpus=torch.cuda.is_available())
        raise LayoutError(
            f"{rank.launcher} started 1 process, and {strategy} needs 2 or more: type {more}, or use --strategy single"
        )
    return named.layout_of(strategy, nproc)


def _processes_for(strategy: str) -> int:
    return max(machine_processes(), named.find(strategy).least)


def alone(work: Work, rank: Rank) -> str | None:
    """Return what to tell about a strategy that divides, over one process; None where there is nothing to tell."""
    strategy = work.strategy
    if work.layout.world_size > 1 or strategy == "single":
        return None
    gpus = torch.cuda.device_count()
    more = start_line(rank.launcher, gpus if gpus > 1 else _CPU_PROCESSES, gpus=gpus > 1)
    if gpus == 1:
        more = (
            f"this machine has one GPU, and its CPU runs them with CUDA_VISIBLE_DEVICES= before the command and {more}"
        )
    return f"paralab: {strategy} over 1 process: nothing is divided; for more: {more}"
