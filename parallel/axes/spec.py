"""The contracts between the parts: what will run, what an engine is built from, what an engine does."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.spec import ModelSpec
from parallel.axes.precision import weight_dtype
from parallel.data.dataset import Batch, Dataset
from parallel.layout import Division, Layout
from parallel.options.config import RunConfig
from parallel.processes.cluster import Mesh


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


class Planned(Protocol):
    """What will run, known before any process is started."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def model_config(self) -> Any: ...

    @property
    def run(self) -> RunConfig: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def division(self) -> Division: ...


@dataclass(frozen=True)
class BuildContext:
    """All that it takes to build an engine. data: opens the training split."""

    spec: ModelSpec
    model_config: Any
    run: RunConfig
    layout: Layout
    division: Division
    mesh: Mesh
    data: Callable[[], Dataset]

    @cached_property
    def data_sha256(self) -> str:
        """Of the content of the training data, whatever its path. Raises: DataError."""
        return self.data().sha256

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    def new_model(self) -> nn.Module:
        """Return the whole model without values, in the precision of its weights."""
        return self.spec.without_values(self.model_config, weight_dtype(self.run.precision))
