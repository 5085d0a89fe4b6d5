"""Choose how much of a run its parity is proved on: all if the reference fits, else fewer blocks and samples.

The reference trains the whole model and the whole batch in one process. Where memory does not allow that, the same
layout is proved with a micro-batch of one sample, and if need be with as few blocks as it has stages.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from paralab.axes.data.approximate import approximation
from paralab.axes.held import state_bytes_of_all
from paralab.axes.precision import weight_dtype
from paralab.axes.recompute import recompute
from paralab.parity.reference import References, Trace, reference_work
from paralab.parity.tolerances import as_judged
from paralab.planning.work import Work
from paralab.processes.allowed import memory_available_bytes
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.proven import NOT_CLAIMED, NOT_PROVEN, WHOLE

_LEAST_BLOCKS = 2  # so that something is passed from block to block


@dataclass(frozen=True)
class Proof:
    """What parity is judged by: a part of the work (all of it, where it fits), and the reference of that part."""

    scope: str
    work: Work | None = None  # both None where nothing fits
    want: Trace | None = None


def prove_on(work: Work, mesh: Mesh, rank: Rank, references: References) -> Proof:
    """Choose what the parity of a case is proved on, and get its reference. Collective over the ranks of the mesh."""
    if (departs := approximation(work.run, work.layout)) is not None:
        return Proof(f"{NOT_CLAIMED}: {departs}")
    judged = as_judged(work)
    part = choose(judged, mesh, processes=processes_here(work, rank))
    want = references.get(part, mesh) if part is not None else None
    return Proof(describe(part, judged), part, want)


def choose(work: Work, mesh: Mesh, *, processes: int) -> Work | None:
    """Return the largest part of a work that parity can be proved on, None where no part fits.

    processes: of this machine. Collective over the ranks of the mesh, which all take what rank 0 finds to fit.
    """
    parts = list(_parts(work))
    chosen: list[int | None] = [None]
    if mesh.world is None or dist.get_rank() == 0:
        chosen = [next((i for i, part in enumerate(parts) if fits(part, mesh.device, processes=processes)), None)]
    if mesh.world is not None:
        dist.broadcast_object_list(chosen, src=0, group=mesh.world)
    return None if chosen[0] is None else parts[chosen[0]]


def describe(part: Work | None, work: Work) -> str:
    """Say how much of a work a part of it is."""
    if part is None:
        return NOT_PROVEN
    blocks, of_blocks = len(part.spec.blocks(part.model_config)), len(work.spec.blocks(work.model_config))
    samples, of_samples = part.division.global_batch_size, work.division.global_batch_size
    kinds = ((blocks, of_blocks, "blocks"), (samples, of_samples, "samples"))
    return ", ".join(f"{some} of {of} {what}" for some, of, what in kinds if some != of) or WHOLE


def _parts(work: Work) -> Iterator[Work]:
    """Yield a work and ever smaller parts of it, all under its layout."""
    yield work
    run, layout = work.run, work.layout
    if run.ds_config is None:  # the file may hold the batch
        division = layout.divide(work.division.global_batch_size // work.division.micro_batch_size, run.accumulation)
        work = replace(work, run=replace(run, global_batch_size=division.global_batch_size), division=division)
        yield work
    if work.spec.with_blocks is not None:
        config = work.spec.with_blocks(work.model_config, max(_LEAST_BLOCKS, layout.stages))
        if len(work.spec.blocks(config)) < len(work.spec.blocks(work.model_config)):
            yield replace(work, model_config=config)


def fits(work: Work, device: torch.device, *, processes: int) -> bool:
    """Return whether a work and its reference can be trained, one after the other, in the memory that is free now."""
    weights = work.n_parameters * weight_dtype(work.run.precision).itemsize
    host = memory_available_bytes()
    reference = reference_work(work)
    alone = state_bytes_of_all(reference) + activation_bytes(reference)
    # the reference's weights are kept, made into one message, and read on every rank
    shared = (2 + 2 * processes) * weights
    together = (1 + processes) * weights
    if device.type == "cpu":
        split = round(state_bytes_of_all(work) * processes / work.layout.world_size) + activation_bytes(reference)
        return max(alone + weights, shared, together + split) <= host
    return shared <= host and alone <= torch.cuda.mem_get_info(device)[0]


def activation_bytes(work: Work) -> int:
    """Estimate what a single process keeps of the forward pass of a micro-batch, from a sample on the meta device.

    It is what autograd saves beside the parameters, and the prediction; the loss makes its gradient in place.
    """
    model = work.new_model()
    recompute(model, work.run.checkpointing)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            saved[storage] = tensor
        return tensor

    inputs, _ = work.spec.example(work.model_config, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = model(*(x.to("meta") for x in inputs))
    sample = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) + prediction.nbytes
    return sample * work.division.micro_batch_size


def processes_here(work: Work, rank: Rank) -> int:
    """Return how many ranks of a work run on this machine."""
    return min(rank.local_world_size, work.layout.world_size)
