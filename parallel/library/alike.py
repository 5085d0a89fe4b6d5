"""What the ranks of a program must have alike before they train: the module, and their random numbers."""

import hashlib

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.errors import ConfigError
from paralab.processes.mesh import Mesh


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
