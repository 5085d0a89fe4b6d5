"""The data axis: ranks see different samples of the batch, and hold the model whole, or a share of it (ZeRO).

Plain data parallelism is in `ddp`, ZeRO and hybrid sharding (`shardN`) in `zero`. What a ZeRO stage sends and holds is
the arithmetic of Rajbhandari et al. 2020 (sections 3.1 and 7): weights, gradients and two Adam moments in fp32, 16
bytes a parameter (12 with SGD and momentum). Stage 1 divides the moments by the data ranks (under `shardN` by those of
a group), stages 2 and 3 everything.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paralab.axes.axis import Axis, Call, Finish, Software, Stage, StageMemory, Transfer, Unit, Updates
from paralab.axes.data import sends
from paralab.axes.data.holds import alike, units, unreduced_bytes, with_experts
from paralab.axes.data.ranks import (
    EXPERT_DATA,
    EXPERT_REPLICATE,
    JOINED,
    REPLICATE,
    SHARD,
    overlaps,
    replica_dim,
    replicas,
    shard_ranks,
    sharers,
)
from paralab.axes.data.refusals import check_local, check_model, check_offload, check_shard
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.words import flag_option, number_option

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec
    from paralab.processes.mesh import Mesh


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
            joined[EXPERT_REPLICATE] = (EXPERT_DATA, "cp")
        if layout.ep > 1 and layout.shard:
            joined[SHARD] = (EXPERT_REPLICATE, "ep")
        return joined

    def dims(self, layout: Layout) -> Mapping[str, int]:
        ep, shard = layout.ep, layout.shard
        groups = {REPLICATE: layout.dp // shard} if shard else {}
        if ep > 1:
            sharing = EXPERT_REPLICATE if layout.cp == 1 else EXPERT_DATA
            return {**groups, sharing: (shard or layout.dp) // ep, "ep": ep}
        return {**groups, SHARD: shard} if shard else {"dp": layout.dp}

    def columns(self, layout: Layout) -> Mapping[str, Any]:
        return {"dp": layout.dp, "zero": layout.zero, "dp_shard": shard_ranks(layout), "local_steps": layout.local}

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError for a stage or a group of ZeRO that the data ranks do not allow."""
        if layout.zero not in (0, 1, 2, 3):
            raise LayoutError(f"zero{layout.zero} in a layout: the ZeRO stage is 0, 1, 2 or 3")
        if layout.zero and replicas(layout) == 1 and layout.world_size > 1:
            raise LayoutError(f"zero{layout.zero} with dp1: there is nothing to shard over, add a degree such as dp2")
        if layout.shard is not None:
            check_shard(layout.shard, layout)
        if layout.local is not None:
            check_local(layout.local, layout)
        check_offload(layout)

    # --- the model

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where FSDP would shard a parameter twice, or ranks apart would have statistics apart."""
        check_model(layout, spec, config)

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

        if not overlaps(context.layout):
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
        if not overlaps(layout):
            return Finish(lambda: ddp.average_gradients(named, mesh=context.mesh, unused=unused))
        may_lack = context.own is not None or not context.spec.is_built_in
        return Finish(lambda: ddp.check_complete(named)) if may_lack and not unused else None

    def copies(self, parameter: "Tensor", mesh: "Mesh") -> int:
        """Return on how many data and context ranks the same piece of a parameter (of any shape) lies."""
        from paralab.axes.placements import sharded_over

        dims = {*self.dims(mesh.layout), *self.joined(mesh.layout), replica_dim(mesh.layout)}
        return replicas(mesh.layout) // sharded_over(parameter, dims)

    def updates(self, parameters: "Sequence[tuple[str, Tensor]]", context: "BuildContext") -> Updates | None:
        """Return each rank's share of the rows under ZeRO-1, and what brings ranks together that train apart.

        parameters: with their names, (rows, ...).
        """
        layout, mesh = context.layout, context.mesh
        if layout.local:
            return _apart(parameters, context)
        updated = [p for _, p in parameters]
        if layout.zero != 1 and not layout.offload_optimizer:
            return None
        from paralab.axes.data import offload, zero
        from paralab.axes.optimizer import make_pieces

        share: Callable[[], None] | None = None
        if layout.zero == 1:
            pieces, share = zero.shares(updated, mesh=mesh)
        else:
            pieces = make_pieces(updated)
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
        return sends.calls_before(name, module, x, plan)

    def gathered(self, stage: Stage, plan: "Planned") -> Sequence[Unit]:
        """Return the units that FSDP gathers: blocks, their experts, and all outside of them."""
        return units(stage, plan) if plan.layout.zero >= 2 else ()

    def finishing(self, stage: Stage, plan: "Planned") -> int:
        """Return the largest bucket that gradients are copied into after backward, where they wait until then."""
        return sends.finishing(stage, plan)

    def sent(self, stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
        """Yield what brings gradients together and updated parameters to where they are needed."""
        return sends.sent(stage, plan)

    def software(self, stage: Stage, plan: "Planned") -> Iterator[tuple[Software, int]]:
        """Yield the modules that FSDP gathers, or the parameters that DistributedDataParallel looks after."""
        return sends.software(stage, plan)

    def copied(self, stage: Stage, plan: "Planned") -> Iterator[int]:
        """Yield gradients on their way to be reduced, and weights as FSDP takes them out of what it has gathered."""
        return sends.copied(stage, plan)

    def alike(self, plan: "Planned") -> list[list[int]]:
        """Return ranks together whose shares of the rows are equal: under ZeRO the last ones may have less."""
        cp = plan.layout.cp
        return alike(plan, lambda rank: [rank * cp + other for other in range(cp)], plan.layout.dp)

    def updating(self, name: str, plan: "Planned") -> int:
        """Return the ranks over which ZeRO divides the rows of a parameter's update."""
        if plan.layout.zero == 0:
            return 1
        return sharers(name, plan)[1]

    def held(
        self, memory: StageMemory, stages: "Sequence[Mapping[str, tuple[int, ...]]]", plan: "Planned"
    ) -> StageMemory:
        layout, ranks = plan.layout, shard_ranks(plan.layout)
        copies = memory.gradients / ranks if layout.offload_optimizer else 0.0  # of what is updated, with its states
        if layout.offload_optimizer:
            memory = memory.but(optimizer=0.0, host=memory.optimizer + copies)
        if layout.local and plan.run.outer_optimizer == "nesterov":
            kept = 3 if plan.run.outer_overlap else 2  # where ranks met, momentum, and what is under way
            memory = memory.but(optimizer=memory.optimizer + kept * memory.gradients)
        if layout.zero < 2:
            return memory
        parameters, gradients = memory.parameters / ranks, memory.gradients / ranks
        unreduced = unreduced_bytes(stages, plan)
        memory = memory.but(parameters=parameters, gradients=gradients)
        if layout.ep > 1:
            memory = with_experts(memory, stages, plan, ranks)
        if layout.offload_parameters:
            host = memory.parameters + memory.gradients + memory.optimizer
            memory = memory.but(parameters=0.0, gradients=0.0, optimizer=0.0, host=host)
        return memory.but(gradients=memory.gradients + unreduced)


def _apart(parameters: "Sequence[tuple[str, Tensor]]", context: "BuildContext") -> Updates:
    """Return updates after which data ranks meet every so many steps; parameters of any shape, with their names."""
    from paralab.axes.data.local import LocalSteps, fragments
    from paralab.axes.optimizer import make_pieces

    run, blocks = context.run, context.spec.blocks(context.model_config)
    steps = LocalSteps(
        fragments(parameters, blocks, run.outer_fragments),
        every=context.layout.local or 1,
        outer=run.outer_optimizer,
        overlap=run.outer_overlap,
        mesh=context.mesh,
    )
    pieces = make_pieces(p for _, p in parameters)
    return Updates(pieces, steps, states=steps.states, refresh=steps.refresh, agreed=steps.agreed)


def _may_leave_out(context: "BuildContext") -> bool:
    """Return whether a step may leave parameters without a gradient: not in the models that are built in."""
    return context.own is not None and context.own.unused_parameters
