"""Ranks that are threads: enough to run what a module asks of `all_reduce` without starting processes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

TIMEOUT_S = 30


class ThreadRanks:
    """A group of `size` threads that can reduce and gather a tensor; `calls` counts the collectives of the group."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = 0
        self._barrier = threading.Barrier(size)
        self._rank = threading.local()
        self._values: list[Tensor] = [torch.empty(0)] * size

    def all_reduce(self, tensor: Tensor, op: str = "sum") -> Tensor:
        stacked = self.all_gather(tensor)
        return stacked.sum(0) if op == "sum" else stacked.amax(0)

    def all_gather(self, tensor: Tensor) -> Tensor:
        rank = self._rank.value
        self._values[rank] = tensor
        self._barrier.wait(TIMEOUT_S)
        stacked = torch.stack(self._values)
        self.calls += rank == 0
        self._barrier.wait(TIMEOUT_S)
        return stacked

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Return work(rank) of every rank; an error in one ends the others."""

        def start(rank: int) -> Any:
            self._rank.value = rank
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(start, range(self.size)))
