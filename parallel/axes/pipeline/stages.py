"""Pipeline parallelism: consecutive blocks on consecutive ranks, micro-batches in flight between them.

The schedules are those of torch.distributed.pipelining: GPipe (Huang et al. 2019), 1F1B (Narayanan et al. 2019),
interleaved 1F1B (Narayanan et al. 2021), interleaved zero bubble and ZBV (Qi et al. 2023), DualPipeV (DeepSeek-AI
2024). `naive` is GPipe with one micro-batch: the plain layer split, in which one rank works at a time.

In a pipeline, gradient accumulation is more micro-batches: they all pass in one flush, which shrinks the bubble
(except under `naive`, which never has two under way).
"""

import copy
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes import used
from paralab.axes.context import BuildContext, Planned
from paralab.axes.initialise import local
from paralab.axes.meta import AllOnMeta
from paralab.axes.precision import in_dtype, weight_dtype
from paralab.data.dataset import Batch
from paralab.layout import SCHEDULES, Layout, Schedule, layers_of_stages, schedules
from paralab.layout.schedules import Pass, ScheduleName
from paralab.models.spec import C, Cut, ModelSpec

_CLASSES: Mapping[ScheduleName, str] = {
    "naive": "ScheduleGPipe",
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zero-bubble": "ScheduleInterleavedZeroBubble",
    "zbv": "ScheduleZBVZeroBubble",
    "dualpipev": "ScheduleDualPipeV",
}


def _class_of(schedule: Schedule) -> Any:
    from torch.distributed.pipelining import schedules as of_torch  # half a second: it brings the compiler along

    return getattr(of_torch, _CLASSES[schedule.name])


def _is_single(schedule: Schedule) -> bool:
    """Return whether torch's class of a schedule takes the one stage of a rank, and not a list of its stages."""
    return SCHEDULES[schedule.name].stages_per_rank == 1


def stage_blocks(n_blocks: int, layout: Layout, stage: int) -> range:
    """Return the blocks of one stage: equal counts, or as many at the ends as the layout says."""
    counts = layers_of_stages(n_blocks, layout.stages, first=layout.first_layers, last=layout.last_layers)
    start = sum(counts[:stage])
    return range(start, start + counts[stage])


def cut_stage(model: nn.Module, *, spec: ModelSpec[C], config: C, layout: Layout, stage: int) -> nn.Module:
    """Delete from a whole model (on the meta device) what one stage does not hold. Names stay as they are."""
    stages, names = layout.stages, spec.blocks(config)
    cut = Cut(stage_blocks(len(names), layout, stage), first=stage == 0, last=stage == stages - 1)
    if spec.cut is not None and stages > 1:
        return spec.cut(config, model, cut)
    for number, name in enumerate(names):
        if number not in cut.blocks:
            container, _, key = name.rpartition(".")
            del model.get_submodule(container)._modules[key]
    first, last = spec.ends(config)
    for name in (() if cut.first else first) + (() if cut.last else last):
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, None)
    return model


def tied_ends(spec: ModelSpec[C], config: C) -> dict[str, str]:
    """Return the tied parameters of which the first stage holds one and the last stage the other.

    Of a model that cuts itself it is taken that all are.
    """
    if spec.cut is not None:
        return dict(spec.tied_in(config))
    first, last = (tuple(f"{name}." for name in names) for names in spec.ends(config))
    pairs = spec.tied_in(config).items()
    return {name: origin for name, origin in pairs if f"{name}.".startswith(last) and f"{origin}.".startswith(first)}


def make_stages(context: BuildContext) -> dict[int, nn.Module]:
    """Build the stages that this rank holds, on the meta device, by stage index."""
    pp, layout = context.mesh.rank("pp"), context.layout
    mine = layout.pipeline.stages_of(pp, layout.pp)
    whole = context.new_model()
    return {stage: _stage_of(whole, context, stage) for stage in mine}


def _stage_of(whole: nn.Module, plan: Planned, stage: int) -> nn.Module:
    return cut_stage(copy.deepcopy(whole), spec=plan.spec, config=plan.model_config, layout=plan.layout, stage=stage)


class PipelineSchedule:
    """Runs forward and backward of all micro-batches of a step through this rank's stages."""

    def __init__(self, parts: Mapping[int, nn.Module], context: BuildContext) -> None:
        from torch.distributed.pipelining import PipelineStage

        layout = context.layout
        self.parts = list(parts.values())
        self.chunks = context.division.chunks
        self.first, self.last = 0 in parts, layout.stages - 1 in parts
        shapes = boundary_shapes(context)
        group = context.mesh.group("pp")
        self.stages = [
            PipelineStage(
                part,
                index,
                layout.stages,
                context.device,
                input_args=shapes[index],
                output_args=shapes[index + 1],
                group=group,
            )
            for index, part in parts.items()
        ]
        kind = _class_of(layout.pipeline)
        self.weight = 1.0  # of a micro-batch's loss, so that gradients need no scaling afterwards
        # The plain layer split has one micro-batch under way at any time, also when it accumulates.
        self.flushes = self.chunks if layout.schedule == "naive" else 1
        self.schedule = kind(
            self.stages[0] if _is_single(layout.pipeline) else self.stages,
            self.chunks // self.flushes,
            loss_fn=lambda loss, _: loss * self.weight,
            scale_grads=False,
        )
        if context.mesh.is_pretended:
            self.schedule._warmup_p2p = self._agree

    def _agree(self, *_: Any) -> None:
        """Take what enters and leaves the stages from their arguments: the other ranks cannot be asked."""
        from torch.distributed.pipelining._utils import InferenceMode

        for stage in self.stages:
            stage._inference_mode = InferenceMode.STATIC

    def __call__(self, batch: Batch, loss_scale: float) -> Tensor:
        """Return the mean loss () of this rank's rows on ranks that hold the last stage, zero on others."""
        self.weight = loss_scale / self.chunks
        losses: list[Tensor] = []
        for part in batch.split(self.flushes):
            inputs = part.inputs if self.first else ()
            targets: dict[str, Any] = {"target": part.targets, "targets": part.given} if self.last else {}
            flushed: list[Tensor] | None = [] if self.last else None
            self.schedule.step(*inputs, losses=flushed, return_outputs=False, **targets)
            losses += flushed or []
        _match_strides(self.parts)
        if not losses:
            return torch.zeros((), device=batch.targets.device)
        return torch.stack(losses).sum().detach() / loss_scale


def _match_strides(parts: list[nn.Module]) -> None:
    """Lay gradients out in memory as their parameters, which is how fused optimizers read them.

    Autograd does so itself, but a schedule that splits backward stores what the kernels made: channels last, say.
    """
    for p in (p for part in parts for p in part.parameters()):
        if p.grad is not None and local(p.grad).stride() != local(p).stride():
            p.grad = torch.empty_like(p).copy_(p.grad)


_BOUNDARIES: WeakKeyDictionary[ModelSpec, dict[tuple[Any, ...], list[tuple[Tensor, ...]]]] = WeakKeyDictionary()


def boundary_shapes(plan: Planned) -> list[tuple[Tensor, ...]]:
    """Return what enters each stage, and what leaves the last, for one micro-batch, as meta tensors.

    Returns: stages + 1 tuples. The first is the model's inputs, (micro_batch, ...); then what a rank hands on, as its
    axes divide it; the last is the loss, shape ().
    """
    known = _BOUNDARIES.setdefault(plan.spec, {})
    key = plan.model_config, plan.layout, plan.division.micro_batch_size, weight_dtype(plan.run.precision)
    if key not in known:  # a dry run asks for each of its ranks
        known[key] = _boundary_shapes(plan)
    return known[key]


def _boundary_shapes(plan: Planned) -> list[tuple[Tensor, ...]]:
    inputs, _ = plan.spec.example(plan.model_config, plan.division.micro_batch_size)
    dtype = weight_dtype(plan.run.precision)
    hidden = tuple(in_dtype(x, dtype).to("meta") for x in inputs)
    shapes = [hidden]
    whole = plan.new_model()
    for axis in used(plan.layout):
        axis.as_seen(whole, plan)
    for stage in range(plan.layout.stages - 1):
        with torch.device("meta"), AllOnMeta():
            out = _stage_of(whole, plan, stage)(*hidden)
        hidden = out if isinstance(out, tuple) else (out,)
        shapes.append(tuple(_handed_on(x, plan.layout).detach().requires_grad_() for x in hidden))
    return [*shapes, (torch.empty((), dtype=dtype, device="meta"),)]  # the last stage returns the loss


def _handed_on(hidden: Tensor, layout: Layout) -> Tensor:
    """Return the piece of what a stage returned that a rank hands to the next one."""
    for axis in used(layout):
        hidden = axis.boundary(hidden, layout)
    return hidden


def pass_order(schedule: str, *, pp: int, micro_batches: int) -> list[list[Pass]]:
    """Return the passes of each rank in the order in which a schedule runs them. schedule: as layouts write it."""
    found = schedules.find(schedule)
    assert found is not None, schedule
    if _is_single(found):
        warm_up = {"naive": 1, "gpipe": micro_batches}  # forwards before the first backward
        return [_single_stage_order(rank, micro_batches, warm_up.get(schedule, pp - rank)) for rank in range(pp)]
    # torch plans for all ranks when a schedule is made, from numbers alone.
    held, stages = found.stages_of(0, pp), found.stages_per_rank * pp
    numbers = [
        SimpleNamespace(stage_index=stage, num_stages=stages, group_size=pp, group_rank=0, submod=nn.Identity())
        for stage in held
    ]
    planned = _class_of(found)(numbers, micro_batches, loss_fn=lambda *_: None).pipeline_order
    return [list(_passes(planned[rank])) for rank in range(pp)]


def _single_stage_order(stage: int, micro_batches: int, warm_up: int) -> list[Pass]:
    order: list[Pass] = []
    for i in range(micro_batches + warm_up - 1):
        if i < micro_batches:
            order.append(Pass("F", stage, i))
        if i >= warm_up - 1:
            order.append(Pass("B", stage, i - warm_up + 1))
    return order


def _passes(actions: list[Any]) -> Iterator[Pass]:
    for action in actions:
        if action is not None and action.sub_actions:  # a forward and a backward, which torch runs in turn
            yield from _passes(action.sub_actions)
        elif action is not None:
            yield Pass(action.computation_type.value, action.stage_index, action.microbatch_index)


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
        for name in _by_origin(_stage_of(whole, plan, stage), plan):
            holders.setdefault(name, []).append(stage)
    return {name: stages for name, stages in holders.items() if len(stages) > 1}


def _by_origin(part: nn.Module, plan: Planned) -> dict[str, nn.Parameter]:
    named = ((name, p) for name, p in part.named_parameters() if p.requires_grad)
    tied = plan.spec.tied_in(plan.model_config)
    return {tied.get(name, name): p for name, p in named}
