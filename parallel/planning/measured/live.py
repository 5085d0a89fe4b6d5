"""What tensors are there while a stage runs: each that comes or goes, in order, and the most bytes at once."""

import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from paralab.axes.axis import Unit


@dataclass(frozen=True)
class Gradient:
    """One that has reached the parameter of a name. after: how many changes came before. storage: what it lies in."""

    name: str
    after: int
    storage: int
    size: int


class Live:
    """Bytes of tensors that are there, apart from some that have been there before. changes: (storage, bytes more)."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        self.now = 0
        self.changes: list[tuple[int, int]] = []
        self.gradients: list[Gradient] = []
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._live: dict[int, weakref.ref] = {}

    def see(self, result: Any) -> None:
        """Note the storages of what an operation returned."""
        for tensor in each(result):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known and key not in self._live:
                self._live[key] = weakref.ref(storage, partial(self._freed, key, size))
                self._add(key, size)

    def _freed(self, key: int, size: int, _: Any) -> None:
        self._live.pop(key, None)
        self._add(key, -size)

    def _add(self, key: int, size: int) -> None:
        self.now += size
        self.changes.append((key, size))

    def added(self, name: str, gradient: Tensor | None) -> None:
        """Note that a gradient (of any shape) has reached the parameter of a name."""
        if gradient is not None:
            storage = gradient.untyped_storage()
            self.gradients.append(Gradient(name, len(self.changes), storage._cdata, storage.nbytes()))


def peak(live: Live) -> tuple[int, int]:
    """Return the most bytes at once, and how many of them were gradients that stay to the end."""
    ends = {one.storage for one in live.gradients}
    last = {key: number for number, (key, size) in enumerate(live.changes) if size > 0}
    now = of_gradients = most = then = 0
    for number, (key, size) in enumerate(live.changes):
        now += size
        if key in ends and number >= last[key]:  # an address may have been of another tensor before
            of_gradients += size
        if now > most:
            most, then = now, of_gradients
    return most, then


def peak_adding(live: Live) -> int:
    """Return the most bytes at once where each gradient is added to one that is there, and is freed then."""
    steps: list[tuple[float, int]] = [(number, size) for number, (_, size) in enumerate(live.changes)]
    steps += [(one.after - 0.5, -one.size) for one in live.gradients]
    now = most = 0
    for _, size in sorted(steps, key=lambda step: step[0]):
        now += size
        most = max(most, now)
    return most


def peak_sharded(live: Live, units: Sequence[Unit]) -> int:
    """Return the most bytes at once where parameters are gathered, and the gradients of a unit divided once complete.

    What they are sent from stays until those of the next unit are. Shards of gradients count, of parameters not.
    """
    order, completes = _in_order(live, units)
    gathered = [_gathered(order[done:]) + _last_gathered(order) for done in range(len(order) + 1)]
    now = sent = shards = done = most = 0
    whole: dict[int, int] = defaultdict(int)
    gradients = iter([*live.gradients, None])
    one = next(gradients)
    for number, (_, size) in enumerate(live.changes, start=1):
        now += size
        most = max(most, now + sent + shards + gathered[done])
        while one is not None and one.after <= number:
            unit, complete = completes[one.name]
            whole[unit] += one.size
            if complete is one:
                done, sent = done + 1, units[unit].reduced_bytes
                most = max(most, now + sent + shards + gathered[done])
                now, shards = now - whole[unit], shards + units[unit].shard_bytes
            one = next(gradients)
    return most


def _in_order(live: Live, units: Sequence[Unit]) -> tuple[list[Unit], dict[str, tuple[int, Gradient]]]:
    """Return units as their gradients are complete, and of each parameter its unit and the gradient that ends that."""
    unit_of = {name: number for number, unit in enumerate(units) for name in unit.names}
    ends = {unit_of[one.name]: one for one in live.gradients}  # the last one stays
    order = [units[number] for number in sorted(ends, key=lambda number: ends[number].after)]
    return order, {name: (unit_of[name], ends[unit_of[name]]) for name in unit_of if unit_of[name] in ends}


def _gathered(waiting: Sequence[Unit]) -> int:
    """Return the bytes of gathered parameters while the first of these units goes backward, and the next is fetched."""
    turns = [unit.whole_bytes for unit in waiting if not unit.stays]
    return sum(unit.whole_bytes for unit in waiting if unit.stays) + sum(turns[:2])


def _last_gathered(order: Sequence[Unit]) -> int:
    """Return the bytes of what the last unit came in, which FSDP keeps until the next one is gathered, if there is."""
    return order[0].whole_bytes if order and all(unit.stays for unit in order) else 0


def each(found: Any) -> Iterator[Tensor]:
    """Yield the tensors, of any shapes, in what an operation or a module returned."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for one in found:
            yield from each(one)
