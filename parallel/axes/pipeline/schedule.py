"""One step of a pipeline: micro-batches in flight between stages, in the order of a schedule.

The schedules are those of torch.distributed.pipelining: GPipe (Huang et al. 2019), 1F1B (Narayanan et al. 2019),
interleaved 1F1B (Narayanan et al. 2021), interleaved zero bubble and ZBV (Qi et al. 2023), DualPipeV (DeepSeek-AI
2024). `naive` is GPipe with one micro-batch: the plain layer split, in which one rank works at a time.

In a pipeline, gradient accumulation is more micro-batches: they all pass in one flush, which shrinks the bubble
(except under `naive`, which never has two under way).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paralab.axes.context import BuildContext
from paralab.axes.initialise import local
from paralab.axes.pipeline.boundaries import boundary_shapes
from paralab.axes.pipeline.passes import class_of, is_single
from paralab.data.dataset import Batch


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
        kind = class_of(layout.pipeline)
        self.weight = 1.0  # of a micro-batch's loss, so that gradients need no scaling afterwards
        # The plain layer split has one micro-batch under way at any time, also when it accumulates.
        self.flushes = self.chunks if layout.schedule == "naive" else 1
        self.schedule = kind(
            self.stages[0] if is_single(layout.pipeline) else self.stages,
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
