"""What the axes are told: what will run, and what it takes to split a model on this rank."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from paralab.axes.precision import weight_dtype
from paralab.data.dataset import Dataset
from paralab.layout import Division, Layout
from paralab.models.spec import ModelConfig, ModelSpec
from paralab.options.config import RunConfig
from paralab.processes.cluster import Mesh


class Planned(Protocol):
    """What will run, known before any process is started."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def model_config(self) -> ModelConfig: ...

    @property
    def run(self) -> RunConfig: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def division(self) -> Division: ...

    def new_model(self) -> nn.Module:
        """Return the whole model on the meta device, in the precision of its weights."""
        ...


@dataclass(frozen=True)
class BuildContext:
    """All that it takes to build an engine. data: opens the training split."""

    spec: ModelSpec
    model_config: ModelConfig
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
        """Return the whole model on the meta device, in the precision of its weights."""
        return self.spec.on_meta(self.model_config, weight_dtype(self.run.precision))
