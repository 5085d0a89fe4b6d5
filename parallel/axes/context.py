"""What the axes are told: what will run, and what it takes to split a model on this rank."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from paralab.axes.precision import weight_dtype
from paralab.data.dataset import Dataset
from paralab.layout import Division, Layout
from paralab.models.configs import ModelConfig
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.processes.mesh import Mesh

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from paralab.axes.optimizer import Piece


class Planned:
    """What will run, known before any process is started."""

    spec: ModelSpec
    model_config: ModelConfig
    run: RunConfig
    layout: Layout
    division: Division

    def new_model(self) -> nn.Module:
        """Return the whole model on the meta device, in the precision of its weights."""
        return self.spec.on_meta(self.model_config, weight_dtype(self.run.precision))


class Own(Protocol):
    """What a program brings of its own, in the place of what the options of a run say.

    unused_parameters: whether a step may leave parameters without a gradient, on some data ranks or on all.
    """

    unused_parameters: bool

    def initialise(self, part: nn.Module, mesh: Mesh) -> None:
        """Give a part its values, in place. Collective: every rank has as many parts."""
        ...

    def optimizer(self, pieces: "list[Piece]", names: Mapping[int, str]) -> "tuple[Optimizer, list[Piece]]":
        """Return what updates these pieces, and the pieces as it takes them. names: by id of a parameter."""
        ...

    def update(self, optimizer: "Optimizer") -> None:
        """Have the optimizer take its step. Raises: ConfigError where it cannot update what it was given."""
        ...

    def after_update(self) -> None:
        """Be told that the optimizer has updated the parameters."""
        ...

    def identity(self, context: "BuildContext") -> Mapping[str, Any]:
        """Return what two runs must share for one to continue the other, as JSON can hold it."""
        ...

    def state(self, optimizer: "Optimizer") -> Mapping[str, Any]:
        """Return what a checkpoint has to hold besides tensors, as JSON can hold it."""
        ...

    def take_state(self, state: Mapping[str, Any], optimizer: "Optimizer") -> None:
        """Go on from what `state` returned."""
        ...

    def random(self, step: int, mesh: Mesh) -> contextlib.AbstractContextManager[None]:
        """Return what a step runs in: the state of the generators that modules draw from (dropout)."""
        ...


@dataclass(frozen=True)
class BuildContext(Planned):
    """All that it takes to build an engine. data: opens the training split. own: of a program that brings its own."""

    spec: ModelSpec
    model_config: ModelConfig
    run: RunConfig
    layout: Layout
    division: Division
    mesh: Mesh
    data: Callable[[], Dataset]
    own: Own | None = None

    @cached_property
    def data_sha256(self) -> str:
        """Of the content of the training data, whatever its path. Raises: DataError."""
        return self.data().sha256

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    @property
    def tied(self) -> Mapping[str, str]:
        """Parameters that share the storage of another: name -> name of the other."""
        return self.spec.tied_in(self.model_config)
