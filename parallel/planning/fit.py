"""Predict whether a run fits into the memory of this machine, before any process is started.

Where a launcher has started them, it is decided when they have met, for all of them: what is free differs from moment
to moment and from machine to machine, and a rank that went on alone would wait for one that refused.

Counted are the states of the model (`paralab.axes.held`) and what a process takes that does nothing. Activations are
not: what is refused here is sure not to fit, what is not refused may still be too large.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
import torch.distributed as dist

from paralab.axes.held import state_bytes, state_bytes_of_all
from paralab.errors import FitError, UsageError
from paralab.layout import Layout
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.allowed import FORKED_BYTES, check_processes_fit, cores_allowed, memory_available_bytes
from paralab.processes.rank import Rank

_USABLE_OF_GPU = 0.95  # the rest is the CUDA context and what the allocator cannot hand out
_ADVISED = 0.7  # of what is free: what is advised should leave room for activations
_CROWDED = 8  # processes a core from which on a line is printed


def check(work: Work, *, force: bool = False) -> None:
    """Refuse a run that does not fit into this machine's memory, and say so where its cores are crowded.

    The processes of a launcher call `agree` once they have met. Raises: FitError with what it takes, what is there, and
    what to type.
    """
    rank = Rank.from_env()
    processes = _processes_here(work, rank)
    if rank.world_size == 1 and not force:  # those of a launcher are there already
        check_processes_fit(processes)
    if rank.local_rank == 0 and rank.device.type == "cpu" and processes > _CROWDED * cores_allowed():
        print(
            f"paralab: {processes} processes on {cores_allowed():g} core(s) take turns: steps take as many times as"
            " long as that says, and starting them takes minutes",
            file=sys.stderr,
        )
    refuse(work, force=force)


def refuse(work: Work, *, force: bool = False) -> None:
    """Raise FitError where a run does not fit, in the process that starts the others or has none beside it."""
    rank = Rank.from_env()
    if force or rank.world_size > 1:
        return
    if reason := _misfit(work, rank):
        raise FitError(reason)


def agree(work: Work, rank: Rank, *, force: bool = False) -> None:
    """Raise FitError on every rank where a run does not fit into one of its machines. Collective over all ranks.

    The first process of each machine looks at its own, when all are there and have taken what an idle one takes.
    """
    if force or not dist.is_initialized():
        return
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, None if rank.local_rank else _misfit(work, rank))
    if reason := next(filter(None, reasons), None):
        raise FitError(reason)


def _misfit(work: Work, rank: Rank) -> str | None:
    """Say what a run takes, what is there, and what would fit; None where it fits."""
    if fits(work, rank):
        return None
    processes = _processes_here(work, rank)
    if rank.device.type != "cpu":
        takes = f"{_gb(state_bytes(work).total)} of parameters, gradients and optimizer states on one GPU"
        there = f"it has {_gb(_gpu_bytes())}"
    else:
        idle = f" + {_gb(_idle_bytes(rank))} of an idle process" if _idle_bytes(rank) else ""
        takes = (
            f"{processes} x ({_gb(state_bytes(work).everywhere)} of parameters, gradients and optimizer states{idle}),"
            f" {_gb(_bytes_here(work, rank))} in all"
        )
        there = f"{_gb(memory_available_bytes())} of this machine's memory are free"
    advice = " or ".join(_advice(work, rank)) or "fewer processes, or a machine with more memory"
    return f"{work.spec.name} {work.size} as {work.layout} takes {takes}; {there}: use {advice}, or --force"


def fits(work: Work, rank: Rank, *, within: float = 1.0) -> bool:
    """Return whether the states of a run fit into so much of this machine's free memory, or of each of its GPUs."""
    if rank.device.type != "cpu":
        return state_bytes(work).total <= within * _gpu_bytes()
    return _bytes_here(work, rank) <= within * memory_available_bytes()


def room_bytes(work: Work, rank: Rank) -> int:
    """Return the memory that a rank of a run has now: of its GPU, or its share of what is free of this machine's."""
    if rank.device.type != "cpu":
        return _gpu_bytes()
    return memory_available_bytes() // _processes_here(work, rank) - _idle_bytes(rank)


def _processes_here(work: Work, rank: Rank) -> int:
    return work.layout.world_size if rank.launcher == "python" else rank.local_world_size


def _bytes_here(work: Work, rank: Rank) -> int:
    """Return the memory of this machine's processes before any activation is kept."""
    processes = _processes_here(work, rank)
    return round(state_bytes_of_all(work) * processes / work.layout.world_size) + processes * _idle_bytes(rank)


def _idle_bytes(rank: Rank) -> int:
    return FORKED_BYTES if rank.launcher == "python" else 0


def _gpu_bytes() -> int:
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return round(_USABLE_OF_GPU * min(gpu.total_memory for gpu in properties))


def _advice(work: Work, rank: Rank) -> list[str]:
    """Return what would fit: the largest smaller size, or the same size divided further; or both at once."""
    ranks = work.layout.world_size
    sharded = None
    if ranks > 1:
        sharded = _changed(work, layout=Layout(dp=ranks, zero=3), strategy=None, global_batch_size=None)
    found = [f"--size {smaller.size}" for smaller in _smaller(work, rank)]
    if sharded is not None and fits(sharded, rank, within=_ADVISED):
        found.append(f"--layout {sharded.layout}")
    if not found and sharded is not None:
        found = [f"--size {smaller.size} --layout {smaller.layout}" for smaller in _smaller(sharded, rank)]
    return found


def _smaller(work: Work, rank: Rank) -> Iterator[Work]:
    """Yield the largest size below that of a work which fits, if one does."""
    parameters = work.n_parameters
    others = (_changed(work, size=size) for size in work.spec.sizes)
    sized = sorted(
        ((other.n_parameters, other) for other in others if other is not None), key=lambda pair: pair[0], reverse=True
    )
    yield from islice((other for n, other in sized if n < parameters and fits(other, rank, within=_ADVISED)), 1)


def _changed(work: Work, **options: object) -> Work | None:
    """Return a work with other options, None where it is refused."""
    try:
        return resolve(replace(work.run, **options))  # type: ignore[arg-type]
    except UsageError:
        return None


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:,.1f} GB"
