"""Ranks that a launcher started have each read a command line: they are one run where these lines ask for the same."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch.distributed as dist

from paralab.errors import DisagreementError
from paralab.options.config import RunConfig
from paralab.options.option import flag_of

# They change nothing of what is computed, so that each machine may have its own.
_OF_A_MACHINE = frozenset(
    "cast_on_device debug_collectives force loader_workers log_to non_blocking out pin_memory preset threads timeout_s"
    " trace trust".split()
)


def check_same(run: RunConfig) -> None:
    """Refuse a run of which ranks were asked for different things. Collective over all ranks.

    Raises: DisagreementError on every rank.
    """
    if not dist.is_initialized():
        return
    asked: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(asked, asked_of(run))
    if reason := difference(asked):
        raise DisagreementError(reason)


def asked_of(run: RunConfig) -> dict[str, str]:
    """Return what ranks have to agree in: flag to value. Of a path its last part."""
    return {flag_of(f): _text(getattr(run, f.name)) for f in fields(run) if f.name not in _OF_A_MACHINE}


def difference(asked: Sequence[Mapping[str, str]]) -> str | None:
    """Say which rank was asked for something else than rank 0; None where all were asked for the same."""
    for rank, other in enumerate(asked):
        for name in {**asked[0], **other}:
            here, there = (one.get(name, "no option") for one in (asked[0], other))
            if here != there:
                return f"{name} is {there} on rank {rank} and {here} on rank 0: start all ranks alike"
    return None


def _text(value: object) -> str:
    return str(value).rpartition("/")[2] if isinstance(value, str) else str(value)
