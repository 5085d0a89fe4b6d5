"""What the ranks of a program must have alike before they train: options, the module, and their random numbers."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.errors import ConfigError, DisagreementError
from paralab.library.work import OwnRun
from paralab.processes.mesh import Mesh


def check_asked_alike(run: OwnRun) -> None:
    """Refuse ranks that ask for different things. Collective over all ranks. Raises: DisagreementError, on every rank.

    Ranks of different layouts would wait for each other, and those of a different clip_norm would drift apart.
    """
    if not dist.is_initialized() or run.layout is None or run.layout.world_size != dist.get_world_size():
        return  # alone, or of a mesh that leaves ranks idle
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, run)
    if reason := difference(every):
        raise DisagreementError(reason)


def difference(runs: Sequence[OwnRun]) -> str | None:
    """Say which rank asks for something else than rank 0; None where all ask for the same."""
    for rank, run in enumerate(runs):
        for field in fields(run):
            here, there = getattr(runs[0], field.name), getattr(run, field.name)
            if here != there:
                return f"{field.name} is {there} on rank {rank} and {here} on rank 0: give it the same on every rank"
    return None


def draw_alike(before: Tensor, mesh: Mesh) -> None:
    """Let ranks whose generators were alike before the module was made go on alike. Collective.

    before: the state of torch's default generator, uint8 (bytes,). Rank 0 has drawn values since, and others may not.
    """
    if mesh.world is None:
        return
    states: list[bytes] = [b""] * mesh.layout.world_size
    dist.all_gather_object(states, hashlib.sha256(before.numpy().tobytes()).digest(), group=mesh.world)
    if len(set(states)) == 1:
        state: list[Tensor] = [torch.get_rng_state()]
        dist.broadcast_object_list(state, src=0, group=mesh.world)
        torch.set_rng_state(state[0])


def check_alike(architecture: str, mesh: Mesh) -> None:
    """Raise ConfigError where ranks have made different modules. Collective."""
    if mesh.world is None:
        return
    every: list[str] = [""] * mesh.layout.world_size
    dist.all_gather_object(every, architecture, group=mesh.world)
    if len(set(every)) > 1:
        other = next(rank for rank, found in enumerate(every) if found != every[0])
        raise ConfigError(
            f"the module of rank {other} has other names or shapes than that of rank 0: make the same one on every rank"
        )
