"""The program's own optimizer and scheduler, on what each rank updates."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from paralab.axes.optimizer import Piece
from paralab.errors import ConfigError, LayoutError

MakeOptimizer = Callable[["Parameters"], Optimizer]
MakeScheduler = Callable[[Optimizer], Any]

# Those that update each element from its own gradient and state alone: on a piece they do what they do on the whole.
_ELEMENTWISE = {
    getattr(torch.optim, name)
    for name in "Adam AdamW SGD RMSprop Adagrad Adadelta Adamax NAdam RAdam ASGD Rprop".split()
}


class Parameters(list[nn.Parameter]):
    """The parameters that an optimizer is made for, as this rank has them. named: (full name, parameter) of each."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.named = list(named)
        super().__init__(parameter for _, parameter in self.named)


def check_asked(*, loss: Any, optimizer: Any, scheduler: Any) -> None:
    """Raise ConfigError where something is given that cannot be called."""
    example = "optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4)"
    if isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"the optimizer is made already, over parameters that the layout replaces: give what makes it, {example}"
        )
    if not callable(optimizer):
        raise ConfigError(f"optimizer={optimizer!r:.60} is no class and no function: give one, such as {example}")
    if scheduler is not None and not callable(scheduler):
        raise ConfigError(
            f"scheduler={type(scheduler).__name__} is no class and no function: give what makes it of the optimizer, "
            "such as scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=1000)"
        )
    if loss is not None and not callable(loss):
        raise ConfigError(
            f"loss={loss!r:.60} is no function: give one of (output, targets), such as "
            "loss=torch.nn.functional.cross_entropy"
        )


def make_scheduler(make: MakeScheduler, optimizer: Optimizer) -> Any:
    """Return the program's scheduler. Raises: ConfigError where `step()` is not all that it takes."""
    scheduler = make(optimizer)
    kind = type(scheduler).__name__
    if not hasattr(scheduler, "step"):
        raise ConfigError(
            f"scheduler made a {kind}, which has no step(): give a function that makes one of torch.optim.lr_scheduler "
            "from an optimizer"
        )
    if asked := _asked_for(scheduler.step):
        raise ConfigError(
            f"{kind} wants {asked} in its step(), and a step has none to give: use a scheduler of the steps alone, "
            "such as LambdaLR or OneCycleLR, or set the learning rate in trainer.optimizer.param_groups yourself"
        )
    return scheduler


def _asked_for(method: Callable[..., Any]) -> str:
    """Return the name of the first argument that a method cannot be called without."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    arguments = inspect.signature(method).parameters.values()
    return next((x.name for x in arguments if x.kind in positional and x.default is x.empty), "")


def make_optimizer(make: MakeOptimizer, pieces: list[Piece], names: Mapping[int, str]) -> tuple[Optimizer, list[Piece]]:
    """Return the program's optimizer over these pieces, and the pieces as it takes them.

    Those of torch that work element by element get the rank's piece of each parameter as a plain tensor. Any other gets
    the sharded parameter itself (a DTensor), of which it sees the whole shape.
    Raises: ConfigError where what is made is no optimizer; LayoutError where it would see rows of a parameter alone.
    """
    optimizer = _made(make, pieces, names)
    divided = [piece for piece in pieces if piece.updated is not piece.parameter]
    if type(optimizer) in _ELEMENTWISE or not divided:
        return optimizer, pieces
    kind = type(optimizer).__name__
    if any(piece.rows != slice(None) for piece in pieces):
        raise LayoutError(
            f"{kind} is not known to update each element by itself, and under zero1 a rank sees some rows of a "
            "parameter: use zero2, zero3 or a layout without ZeRO, or an optimizer of torch such as AdamW"
        )
    whole = [replace(piece, updated=piece.parameter) for piece in pieces]
    return _made(make, whole, names), whole


def _made(make: MakeOptimizer, pieces: list[Piece], names: Mapping[int, str]) -> Optimizer:
    every = Parameters((names[id(piece.parameter)], piece.updated) for piece in pieces)  # type: ignore[misc]
    if not pieces:  # a pipeline stage where nothing is trained
        every = Parameters([("", nn.Parameter(torch.empty(0)))])
    optimizer = make(every)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer made a {type(optimizer).__name__}: give a class or a function that returns an optimizer, such "
            "as optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-4)"
        )
    if asked := _asked_for(optimizer.step):
        raise ConfigError(
            f"{type(optimizer).__name__} calls the model again in its step({asked}), more often than there are "
            "batches: use an optimizer of one gradient a step, such as AdamW"
        )
    ours = {id(parameter) for parameter in every}
    if any(id(p) not in ours for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError(
            "optimizer holds parameters that are not those it was given: they are made anew when a model is split, so "
            "make it of the list that the function gets, as in lambda parameters: AdamW(parameters)"
        )
    return optimizer


def refused(optimizer: Optimizer, error: Exception) -> ConfigError | None:
    """Return what to say of an error in an update, where it is that of sharded tensors."""
    every = (p for group in optimizer.param_groups for p in group["params"])
    if not any(isinstance(parameter, DTensor) for parameter in every):
        return None
    return ConfigError(
        f"{type(optimizer).__name__} does not update sharded tensors (DTensor): "
        f"{' '.join(str(error).split())[:200]}: use a layout that shards nothing (ddp, pipeline), or another optimizer"
    )


def plain(state: Any) -> Any:
    """Return the state of a scheduler as JSON can hold it; what it cannot hold (functions) is left out."""
    if isinstance(state, Mapping):
        return {str(key): kept for key, value in state.items() if (kept := plain(value)) is not None}
    if isinstance(state, (list, tuple)):
        return [plain(value) for value in state]
    if isinstance(state, Tensor):
        return state.item() if state.ndim == 0 else None
    return state if isinstance(state, (bool, int, float, str)) else None
