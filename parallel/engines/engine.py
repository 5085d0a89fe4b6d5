"""What an engine does: optimizer steps, whoever carries them out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from parallel.data.dataset import Batch


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step gives. Both are fp32 tensors of shape (), equal on every rank, not yet read.

    loss: mean over the global batch. grad_norm: over all parameters, before clipping.
    """

    loss: Tensor
    grad_norm: Tensor


class Engine(Protocol):
    """Runs optimizer steps. `parts` are the pieces of the model this rank holds, under their canonical names."""

    parts: list[nn.Module]

    def step(self, batch: Batch) -> StepResult:
        """Take this rank's rows of the global batch and update the parameters once."""
        ...

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        """Yield (canonical name, parameter), sharded ones as DTensors; a name may come once per stage."""
        ...

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """What updates the parameters; their states are what memory is counted from."""
        ...

    def held(self) -> Mapping[str, Iterable[Tensor]]:
        """Return what the engine holds for itself at this moment, by category of memory: gradients and buffers."""
        ...
