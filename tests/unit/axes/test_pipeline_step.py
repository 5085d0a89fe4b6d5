"""One step of a pipeline: what its schedule is given, and the gradients that it leaves."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from paralab.axes.pipeline.schedule import PipelineSchedule
from paralab.data.dataset import Batch


def test_every_micro_batch_weighs_the_same_and_brings_all_its_targets() -> None:
    """Also under `naive`, where each of them is a flush of its own."""
    step, seen = PipelineSchedule.__new__(PipelineSchedule), list[tuple[float, Any]]()
    step.parts, step.chunks, step.flushes, step.first, step.last = [], 3, 3, True, True

    def run(x: Tensor, *, losses: list[Tensor], targets: Any, **_: Any) -> None:
        seen.append((step.weight, targets))
        losses.append(x.sum() * step.weight)

    step.schedule = SimpleNamespace(step=run)
    batch = Batch((torch.arange(6.0),), torch.zeros(6), (torch.ones(6),))
    assert step(batch, 4.0).item() == torch.arange(6.0).sum().item() / 3
    assert [weight for weight, _ in seen] == [4 / 3] * 3
    assert [[x.tolist() for x in targets] for _, targets in seen] == [[[0, 0], [1, 1]]] * 3


def test_gradients_lie_in_memory_as_their_parameters() -> None:
    layer = nn.Conv2d(2, 3, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    grad = torch.randn(3, 2, 3, 3)
    step = PipelineSchedule.__new__(PipelineSchedule)
    step.parts, step.chunks, step.flushes, step.first, step.last = [layer], 1, 1, False, False
    step.schedule = SimpleNamespace(step=lambda **_: setattr(layer.weight, "grad", grad))
    step(Batch((), torch.zeros(1)), 1.0)
    got = layer.weight.grad
    assert got is not None and got.stride() == layer.weight.stride() != grad.stride() and got.equal(grad)
