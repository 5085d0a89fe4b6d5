"""The pipeline axis: consecutive blocks on consecutive ranks, micro-batches in flight between them.

How stages are cut and run is in `stages`; the schedules are those of torch.distributed.pipelining. Accumulation is
more micro-batches: they all pass in one flush, which shrinks the bubble (except under `naive`, which never has two
under way).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from paralab.axes.axis import Axis, Finish, Software, Stage, Transfer
from paralab.axes.shapes import weight_bytes
from paralab.errors import LayoutError, did_you_mean
from paralab.layout import SCHEDULES, Layout, schedules
from paralab.layout.words import LayoutOption, number_option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paralab.axes.axis import ForwardBackward
    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.layout.schedules import Pass
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec
    from paralab.processes.mesh import Mesh


def _word_of(text: str) -> str | None:
    """Return the schedule that a word names, as layouts write it; None for another word."""
    found = schedules.find(text)
    return None if found is None else found.word


class PipelineAxis(Axis):
    """Pipeline parallelism, and the plain layer split (`naive`)."""

    name, title, place = "pp", "pipeline", 3
    options = (
        LayoutOption(
            "schedule", None, _word_of, str, (*SCHEDULES, "interleavedx4"), place=2, elsewhere=schedules.ELSEWHERE
        ),
        number_option("micro_batches", "mb", default=1, examples=("mb4",), place=3),
        number_option("first_layers", "first", default=None, examples=("first2",), place=3),
        number_option("last_layers", "last", default=None, examples=("last2",), place=3),
    )

    def complete(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"schedule": "1f1b"} if values["pp"] > 1 and values["schedule"] is None else {}

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError for an unknown schedule, and for words of a pipeline that have no use."""
        if layout.micro_batches < 1:
            raise LayoutError(f"mb{layout.micro_batches} in a layout: at least mb1 is needed")
        if layout.schedule is not None and schedules.find(layout.schedule) is None:
            hint = did_you_mean(layout.schedule, SCHEDULES)
            raise LayoutError(f"schedule {layout.schedule!r} is unknown{hint}: use one of {', '.join(SCHEDULES)}")
        if layout.pp == 1 and (layout.schedule is not None or layout.micro_batches != 1):
            got = layout.schedule or f"mb{layout.micro_batches}"
            raise LayoutError(f"{got} without a pipeline: add a degree such as pp2, or leave {got} out")
        for word, layers in _ends(layout).items():
            if layout.pp == 1:
                raise LayoutError(f"{word} without a pipeline: add a degree such as pp2, or leave {word} out")
            if layers < 1:
                raise LayoutError(f"{word} in a layout: a stage has at least one layer, use {word.rstrip('0')}1")
        if layout.schedule == "naive" and layout.micro_batches != 1:
            raise LayoutError(f"mb{layout.micro_batches} with the naive schedule: it runs one micro-batch, use gpipe")

    def columns(self, layout: Layout) -> Mapping[str, Any]:
        return {"pp": layout.pp, "schedule": layout.schedule, "micro_batches": layout.micro_batches}

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where the model has too few blocks for its stages, or cannot be cut into them."""
        from paralab.axes.pipeline import rules

        rules.check(layout, spec, config)

    def stages(self, context: "BuildContext") -> "dict[int, nn.Module]":
        from paralab.axes.pipeline import stages

        return stages.make_stages(context)

    def schedule(self, parts: "Mapping[int, nn.Module]", context: "BuildContext") -> "ForwardBackward":
        from paralab.axes.pipeline.schedule import PipelineSchedule

        return PipelineSchedule(parts, context)

    def after_backward(self, parts: "Mapping[int, nn.Module]", context: "BuildContext") -> Finish | None:
        from paralab.axes.pipeline.shared import SharedGradients, shared_parameters

        if not shared_parameters(context):
            return None
        shared = SharedGradients(parts, context)
        return Finish(shared, shared.duplicates)

    def copies(self, parameter: "Tensor", mesh: "Mesh") -> int:
        """Return 1, for a parameter of any shape.

        Every stage has parameters of its own; those that two stages share are named as duplicates.
        """
        return 1

    def loss_copies(self, layout: Layout) -> int:
        """Return 1: the last stage alone has the loss, the others add zero."""
        return 1

    def cost(self) -> "AxisCost":
        from paralab.axes.pipeline.cost import PipelineCost

        return PipelineCost()

    def alike(self, plan: "Planned") -> list[list[int]]:
        """Return every rank by itself: other stages, or more micro-batches under way."""
        return [[rank] for rank in range(plan.layout.pp)]

    def sent(self, stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
        yield from (("pp", transfer) for transfer in _over_boundaries(stage, plan))
        yield "pp", _tied(stage, plan)

    def software(self, stage: Stage, plan: "Planned") -> Iterator[tuple[Software, int]]:
        yield Software.PIPELINE_STAGE, 1

    def received(self, stage: Stage, plan: "Planned") -> int:
        """Return those for every micro-batch of a flush, which torch keeps: activations, and their gradients."""
        flushes = plan.division.chunks if plan.layout.schedule == "naive" else 1
        return sum(int(transfer.payload_bytes) for transfer in _over_boundaries(stage, plan)) // flushes

    def finishing(self, stage: Stage, plan: "Planned") -> int:
        """Return the gradients of parameters that two ranks share three times: what is sent, received, and the sum."""
        return 3 * int(_tied(stage, plan).payload_bytes)

    def passes(self, plan: "Planned") -> "list[list[Pass]] | None":
        if plan.layout.schedule is None:
            return None
        from paralab.axes.pipeline.passes import pass_order

        return pass_order(plan.layout.schedule, pp=plan.layout.pp, micro_batches=plan.division.chunks)


def _ends(layout: Layout) -> dict[str, int]:
    """Return the layers that a layout gives the first and the last stage, by the words that say so."""
    ends = {"first": layout.first_layers, "last": layout.last_layers}
    return {f"{end}{layers}": layers for end, layers in ends.items() if layers is not None}


def _over_boundaries(stage: Stage, plan: "Planned") -> Iterator[Transfer]:
    """Yield an activation to the next stage and a gradient to the one before, for each micro-batch."""
    layout, times = plan.layout, plan.division.chunks
    rank_of = layout.pipeline.rank_of
    if stage.index < layout.stages - 1 and rank_of(stage.index + 1, layout.pp) != stage.pp_rank:
        yield Transfer("send", layout.pp, times * stage.sent_bytes, times, "forward")
    if stage.index > 0 and rank_of(stage.index - 1, layout.pp) != stage.pp_rank:
        yield Transfer("send", layout.pp, times * stage.received_bytes, times, "backward")


def _tied(stage: Stage, plan: "Planned") -> Transfer:
    """Return the exchange of gradients of parameters that stages on several ranks hold: to each of the others."""
    from paralab.axes.data.ranks import shard_ranks
    from paralab.axes.forms import fsdp_padded_numel
    from paralab.axes.pipeline.shared import shared_parameters

    layout, tied, numel = plan.layout, plan.spec.tied_in(plan.model_config), 0
    share = shard_ranks(layout) if layout.zero >= 2 else 1
    origins = {tied.get(name, name): shape for name, shape in stage.shapes.items()}
    for name, stages in shared_parameters(plan).items():
        rank_of = {number: layout.pipeline.rank_of(number, layout.pp) for number in stages}
        here = [number for number in stages if rank_of[number] == stage.pp_rank]
        if here[:1] == [stage.index] and name in origins:  # a rank sends once, whatever it holds
            peers = len(set(rank_of.values())) - 1
            numel += peers * (fsdp_padded_numel([origins[name]], dp=share) // share or 1)
    return Transfer("send", layout.pp, numel * weight_bytes(plan))


def splits_backward(plan: "Planned") -> bool:
    """Return whether the schedule takes the gradients of weights in passes of their own."""
    return plan.layout.schedule is not None and plan.layout.pipeline.splits_backward
