"""An own module with all that was asked for, as the house asks for a run: `Work`, and what the program brings along."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from paralab.axes.context import BuildContext
from paralab.axes.initialise import derived_seed, initialise
from paralab.axes.optimizer import Piece
from paralab.data.dataset import Dataset
from paralab.errors import ConfigError
from paralab.library import values as own_values
from paralab.library.optimizer import MakeOptimizer, MakeScheduler, make_optimizer, make_scheduler, plain, refused
from paralab.options.config import RunConfig, changed
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh


@dataclass(frozen=True, kw_only=True)
class OwnRun(RunConfig):
    """The options of a run, of which an own model uses those of the engine."""

    model: str = changed("model", "own", choices=())


@dataclass
class Brought:
    """What a program brings of its own (`paralab.axes.context.Own`).

    every: the tensors of the whole model on the meta device. values: of whole shapes, by name; on rank 0 or, where
    `everywhere`, on every rank; None where they are drawn by name from the seed.
    """

    every: Mapping[str, Tensor]
    make_optimizer: MakeOptimizer
    make_scheduler: MakeScheduler | None
    seed: int
    unused_parameters: bool = False
    values: Mapping[str, Tensor] | None = None
    drawn: bool = False
    everywhere: bool = False
    judged: bool = False
    around: tuple[contextlib.AbstractContextManager[Any], ...] = ()  # what else a step runs in
    spec: Any = None
    config: Any = None
    scheduler: Any = field(default=None, init=False)

    def initialise(self, part: nn.Module, mesh: Mesh) -> None:
        if self.drawn:
            initialise(part, spec=self.spec, config=self.config, seed=self.seed)
        elif self.everywhere:
            own_values.take(part, self.values or {})
        else:
            own_values.hand_out(part, self.values, self.every, mesh)

    def optimizer(self, pieces: list[Piece], names: Mapping[int, str]) -> tuple[Optimizer, list[Piece]]:
        optimizer, taken = make_optimizer(self.make_optimizer, pieces, names)
        if self.judged:
            _without_noise(optimizer)
        elif self.make_scheduler is not None:
            self.scheduler = make_scheduler(self.make_scheduler, optimizer)
        return optimizer, taken

    def update(self, optimizer: Optimizer) -> None:
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError) as error:
            if said := refused(optimizer, error):
                raise said from error
            raise

    def after_update(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()

    def identity(self, context: BuildContext) -> dict[str, Any]:
        return {"model": context.spec.name, **asdict(context.model_config)}

    def state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return what the groups of the optimizer and the scheduler have become."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        found = {"optimizer": type(optimizer).__name__, "groups": plain(groups)}
        return found if self.scheduler is None else found | {"scheduler": plain(self.scheduler.state_dict())}

    def take_state(self, state: Mapping[str, Any], optimizer: Optimizer) -> None:
        """Go on from what `state` returned. Raises: ConfigError where that was of another optimizer."""
        theirs, groups = state.get("optimizer"), state.get("groups", [])
        if theirs != type(optimizer).__name__ or len(groups) != len(optimizer.param_groups):
            raise ConfigError(
                f"the checkpoint is of {theirs} with {len(groups)} groups of parameters, this trainer has "
                f"{type(optimizer).__name__} with {len(optimizer.param_groups)}: make the same optimizer"
            )
        if ("scheduler" in state) != (self.scheduler is not None):
            had, has = ("a", "none") if "scheduler" in state else ("no", "one")
            raise ConfigError(f"the checkpoint has {had} scheduler, this trainer has {has}: give the same scheduler")
        if self.scheduler is not None:
            self.scheduler.load_state_dict({**self.scheduler.state_dict(), **state["scheduler"]})
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})

    @contextlib.contextmanager
    def random(self, step: int, mesh: Mesh) -> Iterator[None]:
        """Seed what modules draw from, for one step: alike on the ranks that share samples, and different on others."""
        devices = [mesh.device] if mesh.device.type == "cuda" else []
        with torch.random.fork_rng(devices), contextlib.ExitStack() as around:
            for other in self.around:
                around.enter_context(other)
            part = f", context rank {mesh.rank('cp')}" if mesh.size("cp") > 1 else ""
            torch.manual_seed(derived_seed(self.seed, f"step {step}, data rank {mesh.rank('dp')}{part}"))
            yield


_JUDGED_EPS = 1e-5  # of Adam, as paralab.parity.reference has it and for its reason


def _without_noise(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if isinstance(group.get("eps"), float):
            group["eps"] = max(group["eps"], _JUDGED_EPS)


@dataclass(frozen=True)
class OwnWork(Work):
    """A `Work` whose model, data and optimizer are the program's own."""

    brought: Brought

    def context(self, mesh: Mesh) -> BuildContext:
        return BuildContext(
            self.spec,
            self.model_config,
            self.run,
            self.layout,
            self.division,
            mesh,
            data=self.dataset,
            own=self.brought,
        )

    def dataset(self, split: str = "train") -> Dataset:
        raise ConfigError("the data of an own model are what the program passes to step(): no data set is opened")
