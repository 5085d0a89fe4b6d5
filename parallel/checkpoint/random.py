"""The state of the generators that torch draws from, as chunks of a checkpoint."""

from dataclasses import replace

import torch
import torch.distributed as dist

from paralab.axes.context import BuildContext
from paralab.engines.state import Chunks, Shapes, whole


def random_chunks(context: BuildContext) -> Chunks:
    """Return the state of the generators that torch draws from on this rank."""
    states = {"cpu": torch.get_rng_state()}
    device = context.device
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    rank = dist.get_rank(context.mesh.world) if context.mesh.world is not None else 0
    return {f"random.{kind}.{rank}": [whole(state)] for kind, state in states.items()}


def new_random_chunks(context: BuildContext, saved: Shapes) -> Chunks:
    """Return tensors for the generators' states. Where there are more ranks than were saved, some share a state."""
    chunks = {}
    for key, (chunk,) in random_chunks(context).items():
        kind, rank = key.rsplit(".", 1)
        ranks = sum(name.startswith(f"{kind}.") for name in saved)
        if ranks:
            chunks[f"{kind}.{int(rank) % ranks}"] = [replace(chunk, data=torch.empty_like(chunk.data))]
    return chunks


def set_random(context: BuildContext, chunks: Chunks) -> None:
    """Put the generators of this rank into the states that were read."""
    for key, (chunk,) in chunks.items():
        if key.startswith("random.cpu."):
            torch.set_rng_state(chunk.data)
        else:
            torch.get_device_module(context.device).set_rng_state(chunk.data, context.device)
