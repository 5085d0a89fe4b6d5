"""How evenly tokens went to the experts of a mixture, counted in a step that is not timed."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from paralab.models.routing import choices, choosers

Loads = dict[str, list[int]]  # by router: the choices of each expert, and last of those that found no place


class RoutingCounts:
    """Counts the choices of every router of some parts of a model while entered; `loads` are those of this rank.

    What activation checkpointing computes again is counted again.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        named = ((name, module) for part in parts for name, module in part.named_modules())
        self.routers = choosers(named)
        self._counts: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "RoutingCounts":
        for name, router in self.routers.items():
            self._hooks.append(router.register_forward_hook(lambda m, _, out, name=name: self._note(name, m, out)))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, name: str, router: Any, out: Any) -> None:
        experts, count = router.experts_chosen(out)
        counts = choices(experts.detach().flatten(), count + 1)
        self._counts[name] = self._counts[name] + counts if name in self._counts else counts

    @property
    def loads(self) -> Loads:
        return {name: counts.tolist() for name, counts in self._counts.items()}


def together(of_ranks: Sequence[Loads]) -> Loads:
    """Return the loads of the global batch, of those that each rank counted."""
    summed: Loads = {}
    for loads in of_ranks:
        for name, each in loads.items():
            summed[name] = [a + b for a, b in zip(summed.get(name, [0] * len(each)), each, strict=True)]
    return summed


def imbalance(loads: Loads) -> float | None:
    """Return the load of the busiest expert over the mean, in the layer where it is largest; None without experts."""
    return max((max(each) * len(each) / max(sum(each), 1) for *each, _ in loads.values()), default=None)


def dropped_share(loads: Loads) -> float | None:
    """Return the share of choices that found no place; None without experts."""
    every = sum(map(sum, loads.values()))
    return sum(dropped for *_, dropped in loads.values()) / every if every else None
