"""Which collectives a module, or a parameter of it, depends on: what the axes of a layout say, for sentences."""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import nn

from paralab.axes import used
from paralab.axes.axis import Call, Stage
from paralab.axes.shapes import local_shape, parts
from paralab.parity.listening import Spot
from paralab.planning.work import Work


class Sends:
    """The collectives of a work, as "all_reduce over tp"."""

    def __init__(self, work: Work) -> None:
        self.work, self.layout = work, work.layout
        self._asked: dict[tuple[str, str | None], list[str]] = {}

    @cached_property
    def _stages(self) -> list[tuple[nn.Module, set[str]]]:
        """The stages on the meta device, with the names of their parameters."""
        return [
            (part, {name for name, _ in part.named_parameters(remove_duplicate=False)}) for part in parts(self.work)
        ]

    def of_parameter(self, name: str, shape: tuple[int, ...], *, axis: str | None = None) -> list[str]:
        """Return what is communicated about one parameter in a step, over one axis or over all.

        shape: of the whole parameter.
        """
        if (name, axis) not in self._asked:
            self._asked[name, axis] = list(dict.fromkeys(self._of_parameter(name, shape, axis)))
        return self._asked[name, axis]

    def _of_parameter(self, name: str, shape: tuple[int, ...], axis: str | None) -> Iterator[str]:
        shapes, layout = {name: local_shape(name, shape, self.work)}, self.layout
        for index, (module, names) in enumerate(self._stages):
            if name not in names:
                continue
            rank = layout.pipeline.rank_of(index, layout.pp) if layout.schedule else 0
            stage = Stage(index, rank, module, shapes)
            for one in used(layout):
                for over, transfer in one.sent(stage, self.work) if axis in (None, one.name) else ():
                    if transfer.payload_bytes and transfer.ranks > 1:
                        yield f"{transfer.op} over {over}"

    def reductions(self, name: str, shape: tuple[int, ...], *, axis: str | None = None) -> list[str]:
        """Return what completes the gradient of a parameter. shape: of the whole parameter."""
        return [said for said in self.of_parameter(name, shape, axis=axis) if not said.startswith("all_gather")]

    def gathers(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Return what brings a parameter together from the ranks that share it. shape: of the whole parameter."""
        return [said for said in self.of_parameter(name, shape) if said.startswith("all_gather")]

    def of_module(self, spot: Spot, gradient: bool, module: nn.Module, x: tuple[int, ...]) -> list[str]:
        """Return what a module communicates before it gives its output, or the gradient of its input.

        x: the shape of its input on one rank.
        """
        if (spot.side == "input") != gradient or not x:
            return []
        meta, calls = torch.empty(x, device="meta"), list[Call]()
        for axis in used(self.layout):
            for asked in (axis.calls_before, axis.calls_after):
                calls += [call for call in asked(spot.module, module, meta, self.work) if call.backward == gradient]
        return list(dict.fromkeys(f"{call.op} over {call.axis}" for call in calls))

    def of_boundary(self, spot: Spot, gradient: bool) -> list[str]:
        """Return how a tensor comes from the stage before, or its gradient from the stage after."""
        layout, blocks = self.layout, self.work.spec.blocks(self.work.model_config)
        if layout.stages == 1 or spot.module not in blocks:
            return []
        holder = [self.stage_of(block) for block in blocks]
        number = blocks.index(spot.module)
        other = number + 1 if gradient else number - 1
        at_end = (spot.side == "output") == gradient and 0 <= other < len(blocks) and holder[other] != holder[number]
        ranks = {layout.pipeline.rank_of(holder[i], layout.pp) for i in (number, other)} if at_end else set()
        return ["send over pp"] if len(ranks) > 1 else []

    def stage_of(self, module: str) -> int:
        """Return the first stage that holds the module of a name."""
        return next((stage for stage, names in enumerate(self._held) if module in names), 0)

    def in_several_stages(self, name: str) -> bool:
        """Return whether several stages hold a parameter, under whatever names; each has a term of its gradient."""
        tied = self.work.spec.tied_in(self.work.model_config)
        return sum(tied.get(name, name) in {tied.get(x, x) for x in names} for _, names in self._stages) > 1

    @cached_property
    def _held(self) -> list[set[str]]:
        return [{name for name, _ in part.named_modules()} for part, _ in self._stages]
