"""What the data axis sends in a step, what it copies on the way, and what software it puts into one. No torch."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from paralab.axes.axis import Call, Moment, Software, Stage, Transfer
from paralab.axes.blocks import block_of
from paralab.axes.data.ranks import (
    REPLICATE,
    averaged_over,
    is_expert,
    overlaps,
    replica_dim,
    replicas,
    sharers,
)
from paralab.axes.forms import fsdp_padded_numel
from paralab.axes.shapes import blocks_in, compute_bytes, local_shape, trained, weight_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paralab.axes.context import Planned


def sent(stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
    """Yield what brings gradients together and updated parameters to where they are needed, by dim of the mesh."""
    layout, updated = plan.layout, trained(stage.part, stage.shapes)
    if replicas(layout) == 1:
        return
    if layout.zero >= 2:
        yield from _of_shards(stage, plan)
    elif layout.local:
        gradients = sum(prod(shape) for shape in updated.values()) * weight_bytes(plan)
        yield "dp", Transfer("all_reduce", layout.dp, Fraction(gradients, layout.local), when="update")
    elif plan.run.grad_compression != "none":
        from paralab.axes.data import compression

        method, element = plan.run.grad_compression, weight_bytes(plan)
        transfers = compression.transfers(method, updated.values(), ranks=replicas(layout), element=element)
        yield from ((replica_dim(layout), transfer) for transfer in transfers)
    else:
        yield from _of_gradients(updated, plan)
        if layout.zero == 1:
            yield from _of_updates(updated, plan)


def _of_gradients(updated: Mapping[str, tuple[int, ...]], plan: "Planned") -> Iterator[tuple[str, Transfer]]:
    """Yield the all-reduces of whole gradients, in buckets. updated: the shapes of the parameters that have some."""
    from paralab.axes.data.ddp import BUCKET_BYTES

    when: Moment = "backward" if overlaps(plan.layout) else "gradients"
    shared: Counter[tuple[str, int]] = Counter()
    for name, shape in updated.items():
        for over in averaged_over(name, plan):
            shared[over] += prod(shape) * weight_bytes(plan)
    for (dim, ranks), size in shared.items():
        if ranks > 1:
            yield dim, Transfer("all_reduce", ranks, size, -(-size // BUCKET_BYTES), when)


def _of_updates(updated: Mapping[str, tuple[int, ...]], plan: "Planned") -> Iterator[tuple[str, Transfer]]:
    """Yield the all-gathers of the rows that each rank has updated under ZeRO-1: all ranks have equally many."""
    gathered: defaultdict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
    for name, shape in updated.items():
        gathered[sharers(name, plan)].append(shape)
    for (dim, ranks), shapes in gathered.items():
        if ranks > 1:
            rows = fsdp_padded_numel(shapes, dp=ranks)
            yield dim, Transfer("all_gather", ranks, rows * weight_bytes(plan), when="update")


_GATHERED: tuple[Moment, ...] = ("forward", "backward")  # when parameters are: once, or in both


def _of_shards(stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
    """Yield what FSDP gathers in forward and backward, and what it reduces (ZeRO, section 7.2.2).

    Between groups of data ranks it is the shards of the gradients, once a step where no pipeline flushes more often.
    """
    layout, times = plan.layout, reductions(plan)
    updated = trained(stage.part, stage.shapes)
    # What is gathered and reduced together: the blocks, what is outside of them, and the experts of each block.
    units: set[tuple[int | None, bool]] = set()
    for name, shape in stage.shapes.items():
        if not shape:  # whole on every rank
            payload = (name in updated) * weight_bytes(plan)
            yield replica_dim(layout), Transfer("all_reduce", replicas(layout), payload)
            continue
        dim, ranks = sharers(name, plan)
        padded = fsdp_padded_numel([shape], dp=ranks)
        # What is outside the blocks stays gathered from forward to backward, and so does all of a pipeline.
        block = block_of(name, blocks_in(plan))
        gathers = 2 if layout.zero == 3 and layout.pp == 1 and block is not None else 1
        unit = block, is_expert(name, plan)
        calls = 0 if unit in units else times
        units.add(unit)
        for when in _GATHERED[: gathers if ranks > 1 else 0]:  # else one rank has the experts of its group
            yield dim, Transfer("all_gather", ranks, times * padded * compute_bytes(plan), calls, when)
        if name not in updated:
            continue
        if ranks > 1:
            yield dim, Transfer("reduce_scatter", ranks, times * padded * weight_bytes(plan), calls, "backward")
        if layout.shard:
            reduced = (times if layout.pp > 1 else 1) * padded // ranks * weight_bytes(plan)
            yield REPLICATE, Transfer("all_reduce", layout.dp // layout.shard, reduced, min(calls, 1), "backward")


def reductions(plan: "Planned") -> int:
    """Return how often FSDP gathers and reduces in one step: once a backward, once a flush of a pipeline."""
    return 1 if plan.layout.pp > 1 and plan.layout.schedule != "naive" else plan.division.chunks


def calls_before(name: str, module: "nn.Module", x: "Tensor", plan: "Planned") -> Iterator[Call]:
    """Yield the sums of a batch norm, whose x is (batch, channels, height, width), and what a loss gathers.

    Both are over the samples of all ranks.
    """
    from paralab.models.gathering import Gathering
    from paralab.models.spec import Reducing

    if plan.layout.dp == 1 or plan.layout.local:
        return
    if isinstance(module, Gathering):
        yield Call("dp", "all_gather", plan.layout.dp * x.nbytes)
    if isinstance(module, Reducing) and module.axis == "dp":
        # For each channel two sums, and the count, in fp64; in backward two sums (paralab.models.norms).
        (channels,), block = local_shape(f"{name}.weight", (x.shape[1],), plan), block_of(name, blocks_in(plan))
        wide = max(x.element_size(), 4)  # bytes of what statistics are computed in
        yield Call("dp", "all_reduce", (2 * channels + 1) * 8, block=block)
        yield Call("dp", "all_reduce", 2 * channels * wide, backward=True, block=block)


def finishing(stage: Stage, plan: "Planned") -> int:
    """Return the largest bucket that gradients are copied into after backward, where they wait until then."""
    layout = plan.layout
    if replicas(layout) == 1 or layout.local or layout.zero >= 2 or overlaps(layout):
        return 0
    from paralab.axes.data.ddp import largest_bucket_bytes

    shapes = trained(stage.part, stage.shapes).values()
    return largest_bucket_bytes([prod(shape) * weight_bytes(plan) for shape in shapes])


def software(stage: Stage, plan: "Planned") -> Iterator[tuple[Software, int]]:
    """Yield the modules that FSDP gathers, or the parameters that DistributedDataParallel looks after."""
    layout = plan.layout
    if layout.zero >= 2:
        units = {block_of(name, blocks_in(plan)) for name in stage.shapes} | {None}
        again = layout.zero == 3 and layout.pp == 1
        yield Software.SHARDED_MODULE if again else Software.KEPT_MODULE, len(units)
    elif overlaps(layout):
        yield Software.REPLICATED_PARAMETER, len(trained(stage.part, stage.shapes))


def copied(stage: Stage, plan: "Planned") -> Iterator[int]:
    """Yield gradients on their way to be reduced, and weights as FSDP takes them out of what it has gathered."""
    layout = plan.layout
    if replicas(layout) == 1 or layout.local:
        return
    yield sum(prod(shape) for shape in trained(stage.part, stage.shapes).values()) * weight_bytes(plan)
    if layout.zero < 2:
        return
    for name, shape in stage.shapes.items():
        again = layout.zero == 3 and layout.pp == 1 and block_of(name, blocks_in(plan)) is not None
        yield reductions(plan) * (1 + again) * prod(shape) * compute_bytes(plan)
