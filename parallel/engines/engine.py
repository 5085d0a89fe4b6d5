"""What an engine does: optimizer steps, whoever carries them out, and its state in and out."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paralab.axes.context import BuildContext
from paralab.axes.initialise import local, local_slice
from paralab.data.dataset import Batch
from paralab.engines.state import Chunks, Shapes

if TYPE_CHECKING:
    from torch.distributed.pipelining import PipelineStage


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gives. Both are fp32 tensors of shape (), equal on every rank, not yet read.

    loss: mean over the global batch. grad_norm: over all parameters, before clipping.
    """

    loss: Tensor
    grad_norm: Tensor


class LossScale:
    """Dynamic loss scaling for fp16 (Micikevicius et al. 2018): double after 2,000 good steps, halve on overflow."""

    GROWTH_STEPS = 2000

    def __init__(self, *, enabled: bool) -> None:
        self.value = 2.0**16 if enabled else 1.0
        self.enabled = enabled
        self.good_steps = 0

    def update(self, *, finite: bool) -> None:
        """Take note of one step whose gradients were finite, or not."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self.good_steps % self.GROWTH_STEPS == 0:
            self.value *= 2


class Engine(ABC):
    """Runs optimizer steps, and says all that the rest of the house has to know of how it does so.

    context: what it was built from. parts: the pieces of the model that this rank holds, under their canonical names.
    steps_done: optimizer steps since step 0. loss_scale: of fp16; not enabled where the engine has none of ours.
    optimizers: what updates the parameters; their states are what memory is counted from. The answers here are those of
    plain torch, which an engine need not repeat.
    """

    context: BuildContext
    parts: list[nn.Module]
    steps_done: int
    loss_scale: LossScale
    optimizers: list[torch.optim.Optimizer]
    # Makes a context in which parameters are those that ranks last agreed on, where they train apart.
    agreed: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    @abstractmethod
    def step(self, batch: Batch) -> StepResult:
        """Take this rank's rows of the global batch and update the parameters once."""

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Yield (canonical name, parameter), sharded ones as DTensors; a name may come once per stage."""
        for part in self.parts:
            yield from part.named_parameters()

    def held(self) -> Mapping[str, Iterable[Tensor]]:
        """Return what the engine holds for itself at this moment, by category of memory: gradients and buffers.

        Their shapes are the engine's own affair: their bytes are counted.
        """
        return {}

    @property
    def model(self) -> nn.Module:
        """What runs the forward pass of a model that is not cut into stages, in the precision of the run."""
        return self.parts[0]

    @property
    def stages(self) -> "list[PipelineStage]":
        """The pipeline stages that torch runs on this rank; none where there is no pipeline, or it is not torch's."""
        return []

    @torch.no_grad()
    def set_values(self, value_of: Callable[[str], Tensor]) -> None:
        """Give parameters and persistent buffers the tensors that are their names', of whole shapes. Collective.

        value_of: a full name -> a tensor on the CPU.
        """
        for part in self.parts:
            for name, tensor in part.state_dict(keep_vars=True).items():
                local(tensor).copy_(local_slice(value_of(name), tensor))


class ResumableEngine(Engine):
    """An engine whose state has a way into checkpoints and out of them."""

    @abstractmethod
    def state(self) -> Chunks:
        """Return what this rank writes of a checkpoint: parameters, buffers and optimizer states. Collective."""

    @abstractmethod
    def new_state(self, saved: Shapes) -> Chunks:
        """Return tensors for what this rank reads of a checkpoint; the optimizer forgets what it had."""

    def take_state(self, chunks: Chunks, saved: Shapes) -> None:
        """Take over what was read into `new_state`, where that is not the engine's own memory. Collective.

        By default it is, and nothing is left to do.
        """
