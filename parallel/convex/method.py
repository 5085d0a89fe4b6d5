"""What a method and a problem are to whoever measures them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

Rate = Literal["linear", "quadratic", "1/k", "1/k^2"]


class Problem(Protocol):
    """A convex function of a tensor, with its rows divided over ranks. Every method of it is collective."""

    def start(self) -> Tensor:
        """Return the point, of any shape, that methods start from."""
        ...

    def value(self, point: Tensor) -> float:
        """Return the function at a point of the shape of `start`."""
        ...

    def gradient_norm(self, point: Tensor) -> float:
        """Return the norm of the gradient at a point of its shape, or of what stands for it."""
        ...

    def squared_distance(self, point: Tensor, other: Tensor) -> float:
        """Return the squared norm of the difference of two points of its shape, as theorems on the function take it."""
        ...

    def alone(self) -> "Problem":
        """Return the same function in one process."""
        ...

    def part_of(self, point: Tensor) -> Tensor:
        """Return what this rank holds of a point of its shape of `alone`."""
        ...


@dataclass(frozen=True)
class Settings:
    """What stochastic methods are told. batch: samples a step over all ranks."""

    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Iterate:
    """A point, after so many passes over the data and steps of the method. note: what to tell of the step."""

    point: Tensor
    epochs: float
    steps: int
    note: str = ""


@dataclass(frozen=True)
class Optimum:
    """The minimum that suboptimality is measured from."""

    point: Tensor
    value: float


@dataclass(frozen=True)
class Method:
    """A method.

    iterate: yields the starting point and then one iterate an epoch or more, until it can do no better. bound: what a
    theorem says that the suboptimality is at most after so many steps (in the mean, where the method is stochastic);
    None where there is no such theorem, or says nothing of so few.
    """

    name: str
    rate: Rate
    iterate: Callable[[Any, Settings], Iterator[Iterate]]
    bound: Callable[[Any, Optimum, Settings, int], float | None] | None
