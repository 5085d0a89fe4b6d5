"""Parameters that several stages hold, such as an embedding that is the output layer: their gradients are summed."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes.context import BuildContext, Planned
from paralab.axes.initialise import local
from paralab.axes.pipeline.stages import stage_of
from paralab.models.spec import ModelSpec


class SharedGradients:
    """Sum the gradients of parameters that several stages hold, and so keep the copies equal.

    Such are an embedding that is the output layer as well, and whatever else a model uses in more than one place.
    """

    def __init__(self, parts: Mapping[int, nn.Module], context: BuildContext) -> None:
        self.group, self.rank = context.mesh.group("pp"), context.mesh.rank("pp")
        layout = context.layout
        held = {stage: _by_origin(part, context) for stage, part in parts.items()}
        self.rows: list[tuple[list[nn.Parameter], list[int]]] = []  # this rank's copies, and the ranks that have some
        self.duplicates: set[int] = set()  # what the first of the stages that hold it counts
        for name, stages in shared_parameters(context).items():
            ranks = sorted({layout.pipeline.rank_of(stage, layout.pp) for stage in stages})
            copies = {stage: held[stage][name] for stage in stages if stage in held}
            self.duplicates |= {id(p) for stage, p in copies.items() if stage != stages[0]}
            if copies:
                self.rows.append((list(copies.values()), ranks))

    def __call__(self) -> None:
        for copies, ranks in self.rows:
            here = sum((local(_gradient(p)) for p in copies[1:]), start=local(_gradient(copies[0])).clone())
            every = {self.rank: here} | self._exchange(here, [rank for rank in ranks if rank != self.rank])
            total = every[ranks[0]].clone()
            for rank in ranks[1:]:  # in one order on every rank: the copies stay equal to the bit
                total += every[rank]
            for p in copies:
                local(_gradient(p)).copy_(total)

    def _exchange(self, mine: Tensor, peers: list[int]) -> dict[int, Tensor]:
        """Send to each rank that has copies too, return what they sent. Of two, as many bytes as an all-reduce."""
        theirs = {peer: torch.empty_like(mine) for peer in peers}
        operations = [
            dist.P2POp(kind, tensor, group=self.group, group_peer=peer)
            for peer, got in theirs.items()
            for kind, tensor in ((dist.isend, mine), (dist.irecv, got))
        ]
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        return theirs


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of a parameter, of its shape: zeros where this stage did not use it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


_SHARED: WeakKeyDictionary[ModelSpec, dict[tuple[Any, ...], dict[str, list[int]]]] = WeakKeyDictionary()


def shared_parameters(plan: Planned) -> Mapping[str, list[int]]:
    """Return the trained parameters that several stages hold, by their first name, with those stages in order."""
    layout, known = plan.layout, _SHARED.setdefault(plan.spec, {})
    key = plan.model_config, layout.stages, layout.first_layers, layout.last_layers
    if key not in known:
        known[key] = _shared_parameters(plan)
    return known[key]


def _shared_parameters(plan: Planned) -> dict[str, list[int]]:
    if not plan.spec.tied_in(plan.model_config) and plan.spec.cut is None:
        return {}
    whole, holders = plan.new_model(), dict[str, list[int]]()
    for stage in range(plan.layout.stages):
        for name in _by_origin(stage_of(whole, plan, stage), plan):
            holders.setdefault(name, []).append(stage)
    return {name: stages for name, stages in holders.items() if len(stages) > 1}


def _by_origin(part: nn.Module, plan: Planned) -> dict[str, nn.Parameter]:
    named = ((name, p) for name, p in part.named_parameters() if p.requires_grad)
    tied = plan.spec.tied_in(plan.model_config)
    return {tied.get(name, name): p for name, p in named}
