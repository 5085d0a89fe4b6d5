"""The data axis: ranks see different samples of the batch, and hold the model whole, or a share of it (ZeRO).

Plain data parallelism is in `ddp`, ZeRO and hybrid sharding (`shardN`) in `zero`. What a ZeRO stage sends and holds is
the arithmetic of Rajbhandari et al. 2020 (sections 3.1 and 7): weights, gradients and two Adam moments in fp32, 16
bytes a parameter (12 with SGD and momentum). Stage 1 divides the moments by the data ranks (under `shardN` by those of
a group), stages 2 and 3 everything.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

from paralab.axes.axis import Axis, Call, Finish, Moment, Software, Stage, StageMemory, Transfer, Updates
from paralab.axes.blocks import block_of
from paralab.axes.forms import fsdp_padded_numel
from paralab.axes.shapes import blocks_in, compute_bytes, local_shape, local_shapes, parts, trained, weight_bytes
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.words import flag_option, number_option

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.models.spec import C, ModelSpec
    from paralab.processes.mesh import Mesh

REPLICATE, SHARD = "dp_replicate", "dp_shard"  # the dims of the axis under `shardN`: neighbours share a shard
JOINED = "dp_cp"  # data and context ranks together


def replicas(layout: Layout) -> int:
    """Return how many ranks have the same weights and other tokens: of other samples, or of the same (context)."""
    return layout.dp * layout.cp


def replica_dim(layout: Layout) -> str:
    """Return the dim of the mesh that gradients are averaged over: the data axis, joined with the context axis."""
    if layout.cp == 1:
        return "dp"
    return "cp" if layout.dp == 1 else JOINED


EXPERT_REPLICATE = "edp"  # the dim along which ranks share experts, where others divide them (`ep`)
_EXPERT_DATA = "edp_data"  # what is of data ranks in it, where context ranks share them too


def shard_ranks(layout: Layout) -> int:
    """Return the ranks that ZeRO divides over: all that gradients are averaged over, or a group; 1 without ZeRO."""
    return (layout.shard or replicas(layout)) if layout.zero else 1


def shard_dim(layout: Layout) -> str:
    """Return the dim of the mesh that ZeRO divides over."""
    return SHARD if layout.shard else replica_dim(layout)


def is_expert(name: str, plan: "Planned") -> bool:
    """Return whether the parameter of a name is of experts that data ranks divide."""
    experts = plan.spec.experts
    return plan.layout.ep > 1 and experts is not None and fnmatchcase(name.rpartition(".")[0], experts)


def sharers(name: str, plan: "Planned") -> tuple[str, int]:
    """Return the dim of the mesh over which replicas share the parameter of a name, and how many ranks they are."""
    layout = plan.layout
    if is_expert(name, plan):
        return EXPERT_REPLICATE, replicas(layout) // layout.ep
    return replica_dim(layout), replicas(layout)


def sharding_dims(layout: Layout) -> tuple[str, ...]:
    """Return the dims of the mesh that FSDP works on: one of all replicas, or (replicas, shards)."""
    return (REPLICATE, SHARD) if layout.shard else (replica_dim(layout),)


class DataAxis(Axis):
    """Data parallelism, in all stages of ZeRO.

    Context ranks hold the same weights as well, and see other tokens: the axis averages over them too, and ZeRO
    divides over both.
    """

    name, title, place = "dp", "data", 0
    options = (
        number_option("zero", "zero", default=0, examples=("zero1", "zero2", "zero3"), place=0),
        number_option("shard", "shard", default=None, examples=("shard2",), place=1),
        number_option("local", "local", default=None, examples=("local8",), place=2),
        flag_option("offload_optimizer", "offload-optimizer", place=20),
        flag_option("offload_parameters", "offload-parameters", place=21),
    )
    averages = True

    # --- words

    def is_used(self, layout: Layout) -> bool:
        return replicas(layout) > 1 or layout.zero > 0 or layout.offload_optimizer

    def joined(self, layout: Layout) -> Mapping[str, tuple[str, ...]]:
        joined = {JOINED: (*self.dims(layout), "cp")} if replica_dim(layout) == JOINED else {}
        if layout.ep > 1 and layout.cp > 1:
            joined[EXPERT_REPLICATE] = (_EXPERT_DATA, "cp")
        return joined

    def dims(self, layout: Layout) -> Mapping[str, int]:
        if layout.ep > 1:
            sharing = EXPERT_REPLICATE if layout.cp == 1 else _EXPERT_DATA
            return {sharing: layout.dp // layout.ep, "ep": layout.ep}
        ranks = layout.shard
        return {REPLICATE: layout.dp // ranks, SHARD: ranks} if ranks else {"dp": layout.dp}

    def columns(self, layout: Layout) -> Mapping[str, Any]:
        return {"dp": layout.dp, "zero": layout.zero, "dp_shard": shard_ranks(layout), "local_steps": layout.local}

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError for a stage or a group of ZeRO that the data ranks do not allow."""
        if layout.zero not in (0, 1, 2, 3):
            raise LayoutError(f"zero{layout.zero} in a layout: the ZeRO stage is 0, 1, 2 or 3")
        if layout.zero and replicas(layout) == 1 and layout.world_size > 1:
            raise LayoutError(f"zero{layout.zero} with dp1: there is nothing to shard over, add a degree such as dp2")
        if layout.shard is not None:
            _check_shard(layout.shard, layout)
        if layout.local is not None:
            _check_local(layout.local, layout)
        _check_offload(layout)

    # --- the model

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where FSDP would shard a parameter twice, or ranks apart would have statistics apart."""
        if layout.local and spec.whole_batch:
            raise LayoutError(
                f"local{layout.local} with {spec.name}, whose loss is over the samples of all ranks together: ranks "
                f"cannot train apart, leave local{layout.local} out"
            )
        if layout.local and spec.batch_statistics(config) != "none":
            raise LayoutError(
                f"local{layout.local} with {spec.name}, which takes statistics over the samples of a batch: ranks that "
                "train apart would each have their own, use --norm group, or another model"
            )
        blocks = spec.blocks(config) if layout.zero >= 2 else ()
        for name, origin in spec.tied_in(config).items() if layout.zero >= 2 else ():
            if block_of(name, blocks) != block_of(origin, blocks) and not _in_one_module(name, origin, spec, config):
                raise LayoutError(
                    f"{name} of {spec.name} shares the storage of {origin}, and zero{layout.zero} shards each block by "
                    "itself: use zero1, or say block_names=lambda config: (), which makes one unit of all"
                )

    def split(self, part: "nn.Module", context: "BuildContext") -> None:
        if context.layout.dp > 1 and not context.layout.local:
            from paralab.axes.data import ddp

            ddp.connect(part, mesh=context.mesh)

    def casts(self, layout: Layout) -> bool:
        return layout.zero >= 2

    def wrap(self, part: "nn.Module", context: "BuildContext") -> None:
        if context.layout.zero >= 2:
            from paralab.axes.data import zero

            zero.shard(part, mesh=context.mesh, precision=context.run.precision)

    def home(self, context: "BuildContext") -> "torch.device | None":
        import torch

        return torch.device("cpu") if context.layout.offload_parameters else None

    def finalise(self, part: "nn.Module", context: "BuildContext") -> None:
        if context.layout.zero >= 2:
            from paralab.axes.data import zero

            zero.finalise(part, context.mesh)

    # --- a step

    def forward(self, part: "nn.Module", context: "BuildContext") -> "nn.Module | None":
        from paralab.axes.data import ddp

        if not _overlaps(context.layout):
            return None
        model = ddp.replicate(part, mesh=context.mesh, unused=_may_leave_out(context))
        if context.run.grad_compression != "none":
            from paralab.axes.data import compression

            compression.compress(model, context.run.grad_compression, mesh=context.mesh)
        elif context.mesh.is_pretended:
            ddp.answer(model, mesh=context.mesh)
        return model

    def micro_batch(self, model: "nn.Module", *, last: bool) -> contextlib.AbstractContextManager[None]:
        from paralab.axes.data import ddp, zero

        zero.reduce_between_groups(model, now=last)
        return contextlib.nullcontext() if last else ddp.unsynchronised(model)

    def after_backward(self, parts: "Mapping[int, nn.Module]", context: "BuildContext") -> Finish | None:
        layout = context.layout
        if replicas(layout) == 1 or layout.local:
            return None
        from paralab.axes.data import ddp, zero

        named, unused = [pair for part in parts.values() for pair in part.named_parameters()], _may_leave_out(context)
        if layout.zero >= 2:
            return zero.finish(parts.values(), context, unused=unused)
        if not _overlaps(layout):
            return Finish(lambda: ddp.average_gradients(named, mesh=context.mesh, unused=unused))
        return Finish(lambda: ddp.check_complete(named)) if context.own is not None and not unused else None

    def copies(self, parameter: "Tensor", mesh: "Mesh") -> int:
        """Return on how many data and context ranks the same piece of a parameter (of any shape) lies."""
        from paralab.axes.placements import sharded_over

        dims = {*self.dims(mesh.layout), replica_dim(mesh.layout), EXPERT_REPLICATE}
        return replicas(mesh.layout) // sharded_over(parameter, dims)

    def updates(self, parameters: "Sequence[Tensor]", context: "BuildContext") -> Updates | None:
        """Return each rank's share of the rows under ZeRO-1, and what brings ranks together that train apart.

        parameters: (rows, ...).
        """
        layout, mesh = context.layout, context.mesh
        if layout.local:
            return _apart(parameters, context)
        if layout.zero != 1 and not layout.offload_optimizer:
            return None
        from paralab.axes.data import offload, zero
        from paralab.axes.optimizer import make_pieces

        share: Callable[[], None] | None = None
        if layout.zero == 1:
            pieces, share = zero.shares(parameters, mesh=mesh)
        else:
            pieces = make_pieces(parameters)
        if not layout.offload_optimizer:
            return Updates(pieces, share)
        pieces = offload.on_host(pieces)
        on_host = offload.OnHost(pieces, share)
        return Updates(pieces, on_host, states=[piece.updated for piece in pieces], refresh=on_host.refresh)

    def cost(self) -> "AxisCost":
        from paralab.axes.data.cost import DataCost

        return DataCost()

    # --- what it sends and holds

    def calls_before(self, name: str, module: "nn.Module", x: "Tensor", plan: "Planned") -> Iterator[Call]:
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

    def finishing(self, stage: Stage, plan: "Planned") -> int:
        """Return the largest bucket that gradients are copied into after backward, where they wait until then."""
        layout = plan.layout
        if replicas(layout) == 1 or layout.local or layout.zero >= 2 or _overlaps(layout):
            return 0
        from paralab.axes.data.ddp import largest_bucket_bytes

        shapes = trained(stage.part, stage.shapes).values()
        return largest_bucket_bytes([prod(shape) * weight_bytes(plan) for shape in shapes])

    def sent(self, stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
        """Yield what brings gradients together and updated parameters to where they are needed."""
        layout, element = plan.layout, weight_bytes(plan)
        if replicas(layout) == 1:
            return
        if layout.zero >= 2:
            yield from _sharding(stage, plan)
            return
        from paralab.axes.data.ddp import BUCKET_BYTES

        updated = trained(stage.part, stage.shapes)
        gradients = sum(prod(shape) for shape in updated.values())
        if layout.local:
            yield "dp", Transfer("all_reduce", layout.dp, Fraction(gradients * element, layout.local), when="update")
            return
        dim, ranks = replica_dim(layout), replicas(layout)
        if plan.run.grad_compression != "none":
            from paralab.axes.data import compression

            sent = compression.transfers(plan.run.grad_compression, updated.values(), ranks=ranks, element=element)
            yield from ((dim, transfer) for transfer in sent)
            return
        when: Moment = "backward" if _overlaps(layout) else "gradients"
        shared: Counter[tuple[str, int]] = Counter()
        for name, shape in updated.items():
            shared[sharers(name, plan)] += prod(shape) * element
        for (dim, ranks), size in shared.items():
            if ranks > 1:
                yield dim, Transfer("all_reduce", ranks, size, -(-size // BUCKET_BYTES), when)
        if layout.zero == 1:
            gathered: defaultdict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
            for name, shape in updated.items():
                over = sharers(name, plan) if layout.ep > 1 else (shard_dim(layout), shard_ranks(layout))
                gathered[over].append(shape)
            for (dim, ranks), shapes in gathered.items():
                rows = fsdp_padded_numel(shapes, dp=ranks)  # each rank has an equal share of the rows
                if ranks > 1:
                    yield dim, Transfer("all_gather", ranks, rows * element, when="update")

    def software(self, stage: Stage, plan: "Planned") -> Iterator[tuple[Software, int]]:
        """Yield the modules that FSDP gathers, or the parameters that DistributedDataParallel looks after."""
        layout = plan.layout
        if layout.zero >= 2:
            units = {block_of(name, blocks_in(plan)) for name in stage.shapes} | {None}
            again = layout.zero == 3 and layout.pp == 1
            yield Software.SHARDED_MODULE if again else Software.KEPT_MODULE, len(units)
        elif _overlaps(layout):
            yield Software.REPLICATED_PARAMETER, len(trained(stage.part, stage.shapes))

    def copied(self, stage: Stage, plan: "Planned") -> Iterator[int]:
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

    def alike(self, plan: "Planned") -> list[list[int]]:
        """Return ranks together whose shares of the rows are equal: under ZeRO the last ones may have less."""
        cp = plan.layout.cp
        return alike(plan, lambda rank: [rank * cp + other for other in range(cp)], plan.layout.dp)

    def updating(self, name: str, plan: "Planned") -> int:
        """Return the ranks over which ZeRO divides the rows of a parameter's update."""
        if plan.layout.zero == 0:
            return 1
        return sharers(name, plan)[1] if plan.layout.ep > 1 else shard_ranks(plan.layout)

    def held(self, memory: StageMemory, plan: "Planned") -> StageMemory:
        layout, ranks = plan.layout, shard_ranks(plan.layout)
        copies = memory.gradients / ranks if layout.offload_optimizer else 0.0  # of what is updated, with its states
        if layout.offload_optimizer:
            memory = memory.but(optimizer=0.0, host=memory.optimizer + copies)
        if layout.local and plan.run.outer_optimizer == "nesterov":
            memory = memory.but(optimizer=memory.optimizer + 2 * memory.gradients)  # where ranks met, and momentum
        if layout.zero < 2:
            return memory
        parameters, gradients = memory.parameters / ranks, memory.gradients / ranks
        unreduced = _unreduced_bytes(plan, ranks)
        if layout.offload_parameters:
            return memory.but(
                parameters=0.0, gradients=unreduced, optimizer=0.0, host=parameters + gradients + memory.optimizer
            )
        memory = memory.but(parameters=parameters, gradients=gradients + unreduced)
        return _with_experts(memory, plan, ranks) if layout.ep > 1 else memory


def _apart(parameters: "Sequence[Tensor]", context: "BuildContext") -> Updates:
    """Return updates after which data ranks meet every so many steps; parameters of any shape."""
    from paralab.axes.data.local import LocalSteps
    from paralab.axes.optimizer import make_pieces

    steps = LocalSteps(
        parameters, every=context.layout.local or 1, outer=context.run.outer_optimizer, mesh=context.mesh
    )
    return Updates(make_pieces(parameters), steps, states=steps.states)


def _check_offload(layout: Layout) -> None:
    """Raise LayoutError where nothing could be kept in the memory of the host as the words of a layout say."""
    if layout.offload_parameters and layout.zero < 2:
        raise LayoutError(
            f"offload-parameters in layout {layout}: FSDP keeps its shards in the memory of the host, add zero3, "
            "or use offload-optimizer"
        )
    if layout.offload_parameters and layout.offload_optimizer:
        raise LayoutError(
            f"layout {layout}: offload-parameters keeps the optimizer states in the memory of the host as well, leave "
            "offload-optimizer out"
        )
    if layout.offload_optimizer and layout.local:
        raise LayoutError(f"offload-optimizer with local{layout.local}: leave one of them out")


def _check_local(local: int, layout: Layout) -> None:
    """Raise LayoutError unless replicas over data ranks can train apart for so many steps."""
    if local < 1:
        raise LayoutError(f"local{local} in a layout: ranks train apart for at least 1 step, write local8")
    if layout.dp == 1:
        raise LayoutError(f"local{local} with dp1: there is nobody to train apart from, add a degree such as dp2")
    if layout.cp > 1:
        raise LayoutError(
            f"local{local} with cp{layout.cp}: ranks that share a sequence cannot train apart, leave one of them out"
        )
    if layout.zero:
        raise LayoutError(
            f"local{local} with zero{layout.zero}: ranks that train apart hold whole replicas, leave one of them out"
        )


def alike(plan: "Planned", replicas_of: Callable[[int], Sequence[int]], ranks: int) -> list[list[int]]:
    """Return the ranks of an axis in groups of those whose replicas have equal shares of the rows.

    replicas_of: the replicas, in the order of `replica_dim`, that a rank of the axis takes part in.
    """
    shares: dict[tuple[int, ...], list[int]] = {}
    rows = {shape[0] for part in parts(plan) for shape in local_shapes(part, plan).values() if shape}
    for rank in range(ranks):
        mine = tuple(share for replica in replicas_of(rank) for share in _share(replica, rows, plan.layout))
        shares.setdefault(mine, []).append(rank)
    return list(shares.values())


def _share(replica: int, rows: Collection[int], layout: Layout) -> Iterator[int]:
    """Yield how many rows a replica has of parameters with so many."""
    rank = replica % shard_ranks(layout)
    for n in rows:
        block = -(-n // shard_ranks(layout))
        yield max(0, min(block, n - rank * block))


def _may_leave_out(context: "BuildContext") -> bool:
    """Return whether a step may leave parameters without a gradient: not in the models that are built in."""
    return context.own is not None and context.own.unused_parameters


def _overlaps(layout: Layout) -> bool:
    """Return whether DistributedDataParallel averages gradients during backward: it knows no other axis."""
    alone = replicas(layout) == layout.world_size > 1 and layout.ep == 1
    return alone and layout.zero < 2 and not layout.local


def _in_one_module(name: str, other: str, spec: "ModelSpec[C]", config: "C") -> bool:
    """Return whether two names of a parameter are those of one module that has two names: that is sharded once."""
    modules = dict(spec.on_meta(config).named_modules(remove_duplicate=False))
    return modules[name.rpartition(".")[0]] is modules[other.rpartition(".")[0]]


def _check_shard(shard: int, layout: Layout) -> None:
    """Raise LayoutError unless ZeRO divides over groups of so many data ranks."""
    if layout.cp > 1:
        raise LayoutError(
            f"shard{shard} with cp{layout.cp}: ZeRO divides over all data x context ranks there, leave shard{shard} out"
        )
    if not layout.zero:
        raise LayoutError(f"shard{shard} without ZeRO: nothing is sharded, add zero3, or leave shard{shard} out")
    if shard == layout.dp > 1:
        raise LayoutError(
            f"shard{shard} with dp{layout.dp}: one group of all data ranks is plain ZeRO, leave shard{shard} out"
        )
    if not 1 < shard < layout.dp or layout.dp % shard:
        nearest = sorted((n for n in range(2, layout.dp) if layout.dp % n == 0), key=lambda n: abs(n - shard))[:2]
        raise LayoutError(
            f"shard{shard} with dp{layout.dp}: two groups or more of at least 2 data ranks each are needed, "
            f"use {' or '.join(f'shard{n}' for n in nearest) or 'another dp'}, or leave shard{shard} out"
        )


def _with_experts(memory: StageMemory, plan: "Planned", ranks: int) -> StageMemory:
    """Return parameters and gradients that all data ranks would share, with those of experts shared by fewer."""
    _, sharing = next(
        sharers(name, plan) for part in parts(plan) for name, _ in part.named_parameters() if is_expert(name, plan)
    )
    held = max(
        sum(prod(shape) for name, shape in local_shapes(part, plan).items() if is_expert(name, plan))
        for part in parts(plan)
    )
    more = held * weight_bytes(plan) * (1 / sharing - 1 / ranks)
    return memory.but(parameters=memory.parameters + more, gradients=memory.gradients + more)


def reductions(plan: "Planned") -> int:
    """Return how often FSDP gathers and reduces in one step: once a backward, once a flush of a pipeline."""
    return 1 if plan.layout.pp > 1 and plan.layout.schedule != "naive" else plan.division.chunks


_GATHERED: tuple[Moment, ...] = ("forward", "backward")  # when parameters are: once, or in both


def _sharding(stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
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
        dim, ranks = sharers(name, plan) if layout.ep > 1 else (shard_dim(layout), shard_ranks(layout))
        if ranks == 1 and layout.ep > 1:  # one rank has the experts, and shares them with nobody
            continue
        padded = fsdp_padded_numel([shape], dp=ranks)
        # What is outside the blocks stays gathered from forward to backward, and so does all of a pipeline.
        block = block_of(name, blocks_in(plan))
        gathers = 2 if layout.zero == 3 and layout.pp == 1 and block is not None else 1
        unit = block, is_expert(name, plan)
        calls = 0 if unit in units else times
        units.add(unit)
        for when in _GATHERED[:gathers]:
            yield dim, Transfer("all_gather", ranks, times * padded * compute_bytes(plan), calls, when)
        if name not in updated:
            continue
        yield dim, Transfer("reduce_scatter", ranks, times * padded * weight_bytes(plan), calls, "backward")
        if layout.shard:
            reduced = (times if layout.pp > 1 else 1) * padded // ranks * weight_bytes(plan)
            yield REPLICATE, Transfer("all_reduce", layout.dp // ranks, reduced, min(calls, 1), "backward")


def _unreduced_bytes(plan: "Planned", ranks: int) -> float:
    """Return what the largest set of gradients that FSDP reduces at once takes beyond its own shards.

    What is gathered while a block runs is an activation, not a state; but the whole gradients of one unit (a block, or
    all outside the blocks) stand beside the shards until they are reduced, in a pipeline those of a whole stage.
    """
    largest = 0.0
    for part in parts(plan):
        units: dict[tuple[int | None, bool], float] = defaultdict(float)
        for name, shape in trained(part, local_shapes(part, plan)).items():
            expert = is_expert(name, plan)  # those of a block are a unit of their own
            unit = (block_of(name, blocks_in(plan)), expert) if plan.layout.pp == 1 else (None, False)
            share = sharers(name, plan)[1] if expert else ranks
            units[unit] += prod(shape) * (compute_bytes(plan) - weight_bytes(plan) / share)
        largest = max(largest, *units.values(), 0)
    return largest
