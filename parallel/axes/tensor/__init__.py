"""The tensor axis: each layer is split over ranks, following the model's plan (`paralab.models.spec.Style`).

What the split layers do is in `layers`. With `sp` the activations between them are split along the sequence.
"""

from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING

from paralab.axes.axis import Axis, Call, Finish, Moment, Software, Stage, Transfer
from paralab.axes.blocks import block_of
from paralab.axes.shapes import blocks_in, compute_bytes, trained, weight_bytes
from paralab.errors import LayoutError
from paralab.layout import Layout
from paralab.layout.words import flag_option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec, Style

SPLIT_DIM: dict[str, int] = {
    "column": 0,
    "column_gathered": 0,
    "row": 1,
    "row_of_whole": 1,
    "vocab_embedding": 0,
    "vocab_loss": 0,
    "channels": 0,
}
EXPERTS = {"up": 1, "down": 2}  # the dim of each tensor that ranks divide


class TensorAxis(Axis):
    """Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, section 3) and sequence parallelism."""

    name, title, place = "tp", "tensor", 2
    options = (flag_option("sequence_parallel", "sp", place=4),)

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError for sequence parallelism without tensor parallelism."""
        if layout.sequence_parallel and layout.tp == 1:
            raise LayoutError("sp without tensor parallelism: add a degree such as tp2, or leave sp out")

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where a plan is missing or wrong, or a layer or the sequence does not divide over ranks."""
        from paralab.axes.tensor import rules

        rules.check(layout.tp, spec, config)
        if not layout.sequence_parallel:
            return
        if not spec.sequence_parallel:
            raise LayoutError(f"{spec.name} has no sequence-parallel form: leave sp out of the layout")
        if lacking := rules.sequence_problems(spec, config):
            raise LayoutError(f"{spec.name}: {'; '.join(lacking)}; leave sp out of the layout, or see docs/models.md")
        from paralab.models.configs import SequenceConfig

        if isinstance(config, SequenceConfig) and config.seq_len // layout.cp % layout.tp:
            positions = f"the {config.seq_len // layout.cp} positions of a rank" if layout.cp > 1 else ""
            raise LayoutError(
                f"tp={layout.tp} with sp does not divide {positions or f'seq_len={config.seq_len}'}: use another tp, "
                "or no sp"
            )

    def split(self, part: "nn.Module", context: "BuildContext") -> None:
        from paralab.axes.initialise import tie
        from paralab.axes.tensor import layers

        layers.split_layers(part, context.spec.tensor_plan(context.model_config), mesh=context.mesh)
        tie(part, context.tied)

    def after_backward(self, parts: "Mapping[int, nn.Module]", context: "BuildContext") -> Finish | None:
        if context.layout.zero >= 2:  # FSDP has brought its gradients to the placement of the parameters
            return None
        from paralab.axes.tensor import layers

        return Finish(lambda: layers.align_gradients(list(parts.values()), mesh=context.mesh))

    def cost(self) -> "AxisCost":
        from paralab.axes.tensor.cost import TensorCost

        return TensorCost()

    def boundary(self, hidden: "Tensor", layout: Layout) -> "Tensor":
        """Return a piece of the sequence of (batch, sequence, hidden) under sequence parallelism.

        What has no sequence, such as a loss of each sample (batch,), stays whole.
        """
        is_split = layout.sequence_parallel and hidden.ndim > 1
        return hidden.tensor_split(layout.tp, dim=1)[0].contiguous() if is_split else hidden

    def local_shape(self, name: str, shape: tuple[int, ...], plan: "Planned") -> tuple[int, ...]:
        module, _, tensor = name.rpartition(".")
        style = _style(module, plan)
        dim = EXPERTS[tensor] if style == "experts" else SPLIT_DIM.get(style or "", len(shape))
        if dim >= len(shape):  # the bias beside a weight that is split by inputs stays whole
            return shape
        return (*shape[:dim], shape[dim] // plan.layout.tp, *shape[dim + 1 :])

    def calls_before(self, name: str, module: "nn.Module", x: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield what a split layer does to its input x (batch, sequence, hidden), and to the gradient of it."""
        style, sequence, block = _style(name, plan), plan.layout.sequence_parallel, block_of(name, blocks_in(plan))
        if _in_terms(name, plan):
            return
        if style in ("column", "vocab_loss", "whole_sequence") and sequence:
            yield Call("tp", "all_gather", x.nbytes, block=block)
        if style == "whole_sequence" and sequence:
            yield Call("tp", "reduce_scatter", x.nbytes, backward=True, block=block)
        if style in ("column", "column_gathered", "experts"):  # each rank has a term of the gradient of x
            yield Call("tp", "reduce_scatter" if sequence else "all_reduce", x.nbytes, backward=True, block=block)
        if style == "row_of_whole":  # each rank has the gradient of its part of x
            yield Call("tp", "all_gather", x.nbytes, backward=True, block=block)
        if style == "vocab_loss":
            # For each word: the largest logit; the sum of exponentials and the target's logit. Then the gradient of x,
            # which is made in forward (paralab.models.cross_entropy).
            words = x.numel() // x.shape[-1]
            yield Call("tp", "all_reduce", (3 * words + x.numel()) * max(x.element_size(), 4))

    def calls_after(self, name: str, module: "nn.Module", out: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield what a split layer does to its output (batch, sequence, hidden), and to the gradient of it."""
        style, sequence, block = _style(name, plan), plan.layout.sequence_parallel, block_of(name, blocks_in(plan))
        if _in_terms(name, plan):
            return
        if style == "whole_sequence" and sequence:
            yield Call("tp", "reduce_scatter", out.nbytes, block=block)
        if style == "column_gathered":
            yield Call("tp", "all_gather", out.nbytes, block=block)
        if style in ("row", "row_of_whole", "experts"):  # each rank has a term of the output
            yield Call("tp", "reduce_scatter" if sequence else "all_reduce", out.nbytes, block=block)
        if style == "vocab_embedding":
            yield Call("tp", "all_reduce", out.nbytes)
        # each rank has the gradient of its piece
        if style in ("row", "scatter_sequence", "whole_sequence") and sequence:
            yield Call("tp", "all_gather", out.nbytes, backward=True, block=block)

    def software(self, stage: Stage, plan: "Planned") -> Iterator[tuple[Software, int]]:
        """Yield the layers whose inputs, weights and outputs are DTensors, and those that run on local pieces."""
        from torch.nn import Conv2d

        whole = () if plan.layout.sequence_parallel else (_NORM, "scatter_sequence", "whole_sequence")
        for name, module in stage.part.named_modules():
            style = _style(name, plan)
            if style is not None and style not in whole:
                local = style in _LOCAL or isinstance(module, Conv2d) or _in_terms(name, plan)
                yield Software.LOCAL_LAYER if local else Software.SPLIT_LAYER, 1

    def sent(self, stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
        """Yield the sum of gradients that each rank made from its piece: of the sequence or of the heads, in norms."""
        from paralab.axes.data.sends import reductions

        pieces = (_HEADS, _NORM) if plan.layout.sequence_parallel else (_HEADS,)
        updated = ((name.rpartition(".")[0], shape) for name, shape in trained(stage.part, stage.shapes).items())
        seen = [prod(shape) for module, shape in updated if _in_pieces(module, pieces, plan)]
        if not seen:
            return
        sharded = plan.layout.zero >= 2
        element = compute_bytes(plan) if sharded and plan.layout.pp == 1 else weight_bytes(plan)
        times = reductions(plan) if sharded else 1
        when: Moment = "backward" if sharded else "gradients"  # where FSDP brings them to where parameters lie
        yield "tp", Transfer("all_reduce", plan.layout.tp, times * sum(seen) * element, when=when)


# Styles of what is whole on every rank, and sees a piece of the sequence or of the heads.
_NORM, _HEADS = "sequence", "heads"
_LOCAL = ("channels", "heads", "experts", "vocab_loss")  # whose modules run on the local pieces of their parameters


def style_of(module: str, styles: "Mapping[str, Style]") -> "Style | None":
    """Return the style that a plan gives to a module, by its full name; None where it says nothing of it."""
    return next((style for pattern, style in styles.items() if fnmatchcase(module, pattern)), None)


def is_gathered(module: str, styles: "Mapping[str, Style]") -> bool:
    """Return whether a module is within one for which /sp gathers the sequence."""
    parts = module.split(".")
    return any(style_of(".".join(parts[:n]), styles) == "whole_sequence" for n in range(1, len(parts)))


def _style(module: str, plan: "Planned") -> "Style | None":
    return style_of(module, plan.spec.tensor_plan(plan.model_config))


def _in_terms(module: str, plan: "Planned") -> bool:
    """Return whether each rank has a term of what a module returns, which nobody sums there."""
    return plan.layout.sequence_parallel and is_gathered(module, plan.spec.tensor_plan(plan.model_config))


def _in_pieces(module: str, pieces: "Collection[str]", plan: "Planned") -> bool:
    """Return whether each rank has a term of the gradients of a module's parameters, which are whole."""
    style = _style(module, plan)
    return style in pieces or (style is None and _in_terms(module, plan))
