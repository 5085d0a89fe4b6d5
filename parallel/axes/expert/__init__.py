"""The expert axis: data ranks divide the experts of a mixture among themselves, and tokens travel to their experts.

`ep` lies inside `dp` (GShard, Lepikhin et al. 2020, section 2.2; DeepSpeed-MoE, Rajbhandari et al. 2022, section 5.2):
`dp4.ep2` is four processes, each two neighbours of which hold all experts between them. What is no expert is
replicated or sharded over all data ranks as without `ep`; an expert is shared by dp / ep of them, along the dim `edp`
of the mesh. With `cp` the ranks that share an expert are dp x cp / ep, since each of them sees other tokens. Under `tp`
each rank has a part of the width of its experts. How tokens travel is in `layers`.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from paralab.axes.axis import Axis, Call
from paralab.axes.blocks import block_of
from paralab.axes.data.ranks import is_expert
from paralab.axes.shapes import blocks_in
from paralab.errors import LayoutError
from paralab.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec
    from paralab.processes.mesh import Mesh

COUNT_BYTES = 8  # of how many rows of an expert a rank sends


class ExpertAxis(Axis):
    """Expert parallelism."""

    name, title, place, inside = "ep", "expert", 0, "dp"

    # --- words

    def dims(self, layout: Layout) -> Mapping[str, int]:
        return {}  # it is a dim of the data axis

    def check_layout(self, layout: Layout) -> None:
        """Raise LayoutError where experts cannot be divided among the data ranks."""
        ep, dp = layout.size("ep"), layout.dp
        if ep == 1:
            return
        if dp % ep:
            raise LayoutError(
                f"ep{ep} with dp{dp}: data ranks share the experts, use a dp that ep divides, such as dp{ep}"
            )
        if (shard := layout.shard) and shard % ep:
            fits = " or ".join(f"ep{n}" for n in range(2, shard + 1) if shard % n == 0)
            raise LayoutError(
                f"ep{ep} with shard{shard}: the {shard} ranks of a group hold the whole model, so they divide its "
                f"experts among themselves, use {fits}, or leave shard{shard} out"
            )
        if layout.local:
            raise LayoutError(
                f"ep{ep} with local{layout.local}: ranks that train apart hold whole replicas, and no rank has all "
                "experts, leave one of them out"
            )

    # --- the model

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where a model has no experts, or a number of them that does not divide."""
        count = expert_count(spec, config)
        if not count:
            raise LayoutError(f"{spec.name} has no experts to divide: leave ep{layout.ep} out, or use --model mixtral")
        if count % layout.ep:
            fits = ", ".join(str(ep) for ep in range(1, count + 1) if count % ep == 0)
            raise LayoutError(f"ep={layout.ep} does not divide the {count} experts of {spec.name}: use an ep of {fits}")

    def split(self, part: "nn.Module", context: "BuildContext") -> None:
        from paralab.axes.expert import layers

        for name, module in list(part.named_modules()):
            if holds_experts(name, context.spec):
                layers.divide(module, mesh=context.mesh)

    def copies(self, parameter: "Tensor", mesh: "Mesh") -> int:
        """Return 1, for a parameter of any shape: the data axis counts its ranks."""
        return 1

    def loss_copies(self, layout: Layout) -> int:
        """Return 1: the data axis counts its ranks."""
        return 1

    def cost(self) -> "AxisCost":
        from paralab.axes.expert.cost import ExpertCost

        return ExpertCost()

    # --- what it sends, and what a rank holds

    def as_seen(self, part: "nn.Module", plan: "Planned") -> None:
        """Have experts that are called with tokens note how many of them each token goes to, by which bytes count."""
        from paralab.axes.expert import layers

        for name, module in part.named_modules():
            if holds_experts(name, plan.spec) and layers.takes_tokens(module):
                module.register_forward_pre_hook(layers.note_choices)

    def local_shape(self, name: str, shape: tuple[int, ...], plan: "Planned") -> tuple[int, ...]:
        return (shape[0] // plan.layout.ep, *shape[1:]) if is_expert(name, plan) else shape

    def calls_before(self, name: str, module: "nn.Module", x: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield how rows x (rows, hidden) go to their experts, and their gradients back; before them how many go.

        Where loads differ, ranks send and receive different numbers of rows: this is their mean. With a capacity it is
        the most that they send. Experts that are called with tokens make rows of them, one for each choice.
        """
        if holds_experts(name, plan.spec):
            block, experts = block_of(name, blocks_in(plan)), next(module.parameters()).shape[0]
            size = x.nbytes * getattr(module, "choices", 1)
            yield Call("ep", "all_to_all", experts * COUNT_BYTES, block=block)
            yield Call("ep", "all_to_all", size, block=block)
            yield Call("ep", "all_to_all", size, backward=True, block=block)

    def calls_after(self, name: str, module: "nn.Module", out: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield how rows (rows, hidden) come back from their experts, and their gradients go there."""
        if holds_experts(name, plan.spec):
            block, size = block_of(name, blocks_in(plan)), out.nbytes * getattr(module, "choices", 1)
            yield Call("ep", "all_to_all", size, block=block)
            yield Call("ep", "all_to_all", size, backward=True, block=block)


def holds_experts(module: str, spec: "ModelSpec[C]") -> bool:
    """Return whether the module of a name holds the experts of a layer."""
    return spec.experts is not None and fnmatchcase(module, spec.experts)


def expert_count(spec: "ModelSpec[C]", config: "C") -> int:
    """Return how many experts a layer has; 0 in a model without."""
    if spec.experts is None:
        return 0
    modules = spec.on_meta(config).named_modules()
    found = (next(module.parameters()).shape[0] for name, module in modules if holds_experts(name, spec))
    return next(found, 0)
