"""The context axis: ranks have different positions of the same sequences, and attention goes over all of them.

The ranks hold the model whole, so that what they make of their positions is averaged as over data ranks, by the data
axis: gradients are those of the ranks of both axes, and ZeRO divides over both. What is replaced is `Attend`
(`paralab.models.sequence`): by `ring`, where keys and values go round, or by `ulysses`, where every rank gets all
positions of some heads. Which positions a rank has is in `pieces`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from paralab.axes.axis import Axis, Call
from paralab.axes.blocks import block_of
from paralab.axes.shapes import blocks_in
from paralab.errors import LayoutError
from paralab.layout import Layout, common_divisors
from paralab.layout.words import choice_option

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor, nn

    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.models.configs import C
    from paralab.models.sequence import SequenceShape
    from paralab.models.spec import ModelSpec
    from paralab.processes.mesh import Mesh

STYLES = ("ring", "ulysses")


class ContextAxis(Axis):
    """Context parallelism: a ring (Liu et al. 2023) or all-to-alls (DeepSpeed-Ulysses, Jacobs et al. 2023)."""

    name, title, place = "cp", "context", 1
    options = (choice_option("cp_style", STYLES, place=6),)
    shares_samples = True

    # --- words

    def complete(self, values: "Mapping[str, Any]") -> "Mapping[str, Any]":
        return {"cp_style": "ring"} if values["cp"] > 1 and values["cp_style"] is None else {}

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError for a style of context parallelism without any, or one that there is not."""
        if layout.cp_style not in (None, *STYLES):
            raise LayoutError(f"cp_style {layout.cp_style!r} is unknown: use {' or '.join(STYLES)}")
        if layout.cp == 1 and (style := layout.cp_style) is not None:
            raise LayoutError(f"{style} without context parallelism: add a degree such as cp2, or leave {style} out")

    # --- the model

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where a model has no sequence to split, or its positions or heads do not divide."""
        shape = spec.sequence(config)
        if shape is None and spec.is_built_in:
            raise LayoutError(f"{spec.name} is given no sequences that ranks could share: use a layout without cp")
        if shape is None:
            raise LayoutError(
                f"{spec.name} cannot be split along a sequence: it takes a ModelSpec with sequence=..., whose modules "
                "take positions by Sequence.take and attend by Attend (docs/models.md); use a layout without cp"
            )
        _check_positions(layout, shape, spec.name)
        if layout.cp_style == "ulysses":
            _check_heads(layout, shape, spec.name)

    def split(self, part: "nn.Module", context: "BuildContext") -> None:
        from paralab.axes.context_parallel import modules

        shape = context.spec.sequence(context.model_config)
        assert shape is not None, "check_model refuses models without a sequence"
        compiled = context.run.compile != "none"
        modules.connect(part, mesh=context.mesh, causal=shape.causal, compiled=compiled)

    # --- a step

    def copies(self, parameter: "Tensor", mesh: "Mesh") -> int:
        """Return 1, for a parameter of any shape: the data axis counts its copies on the ranks of both axes."""
        return 1

    def cost(self) -> "AxisCost":
        from paralab.axes.context_parallel.cost import ContextCost

        return ContextCost()

    # --- what it sends

    def piece(self, whole: "Tensor", dim: int, rank: int, plan: "Planned") -> "Tensor":
        """Return the positions that a rank has of an activation (batch, ..., seq, ...), whose dim `dim` is seq."""
        from paralab.axes.context_parallel.pieces import taken_by

        shape = plan.spec.sequence(plan.model_config)
        return taken_by(rank, plan.layout, causal=shape is not None and shape.causal)(whole, dim)

    def alike(self, plan: "Planned") -> list[list[int]]:
        """Return ranks together whose shares of the rows under ZeRO are equal."""
        from paralab.axes.data.holds import alike

        dp, cp = plan.layout.dp, plan.layout.cp
        return alike(plan, lambda rank: [other * cp + rank for other in range(dp)], cp)

    def as_seen(self, part: "nn.Module", plan: "Planned") -> None:
        from paralab.axes.context_parallel import modules

        modules.keep_one_piece(part, ranks=plan.layout.cp)

    def calls_before(self, name: str, module: "nn.Module", x: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield what attention sends; x are its queries (batch, heads, seq, head_dim), of all tensor ranks.

        And what ranks tell each other of the whole sequence; x is (batch, seq, ...) then.
        """
        from paralab.models.sequence import Attend, Whole

        block, ranks = block_of(name, blocks_in(plan)), plan.layout.cp
        if isinstance(module, Whole):
            yield Call("cp", "all_gather", ranks * x.nbytes, block=block)
        if not isinstance(module, Attend):
            return
        split = any("heads" in what for what in plan.spec.tensor_divides(plan.model_config))
        queries = x.nbytes // (plan.layout.tp if split else 1)
        keys = queries // module.queries
        values = keys if module.value_width is None else keys // x.shape[-1] * module.value_width
        made = values * module.queries
        if plan.layout.cp_style == "ulysses":
            for payload in (queries + keys + values, made):  # to heads, and what attention made of them back
                yield Call("cp", "all_to_all", payload, block=block)
                yield Call("cp", "all_to_all", payload, backward=True, block=block)
            return
        hops, wide = ranks - 1, max(x.element_size(), 4)  # gradients of keys and values are summed in fp32 or wider
        gradients = (keys + values) // x.element_size() * wide
        yield Call("cp", "send", hops * (keys + values), block=block)
        yield Call("cp", "send", hops * (keys + values + gradients), backward=True, block=block)


def _check_positions(layout: Layout, shape: "SequenceShape", model: str) -> None:
    """Raise LayoutError where ranks would have different numbers of positions."""
    pieces = 2 if layout.cp_style == "ring" and shape.causal else 1  # of each rank: an early and a late one
    if shape.length % (pieces * layout.cp):
        each = f"{pieces} x cp" if pieces > 1 else "cp"
        fits = common_divisors([shape.length], times=pieces)
        raise LayoutError(
            f"cp={layout.cp} with {layout.cp_style} needs {each} = {pieces * layout.cp} to divide the {shape.length} "
            f"positions of {model}: {_use(fits)}, or another --seq-len"
        )


def _check_heads(layout: Layout, shape: "SequenceShape", model: str) -> None:
    """Raise LayoutError where heads, those of keys and values included, do not divide over the ranks."""
    for heads, what in ((shape.heads, "heads"), (shape.kv_heads, "key-value heads")):
        if heads % (layout.cp * layout.tp):
            among = f"cp x tp = {layout.cp * layout.tp}" if layout.tp > 1 else f"cp={layout.cp}"
            fits = common_divisors([shape.heads, shape.kv_heads], times=layout.tp)
            raise LayoutError(
                f"{among} with ulysses does not divide the {heads} {what} of {model}: {_use(fits)}, or ring"
            )


def _use(fits: list[int]) -> str:
    degrees = [str(degree) for degree in fits if degree > 1]
    return f"use a cp of {', '.join(degrees)}" if degrees else "no cp does, use a layout without it"
