"""Tensor ranks that are threads of one process: enough to see whether a tensor plan computes what the model does.

Layers are split by slices of their weights; what ranks add up or gather meets at a barrier.
"""

import copy
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from paralab.models.spec import Style

_TIMEOUT_S = 30


class ThreadRanks:
    """`size` ranks that share the layers of a model by a plan: pattern of a module's name -> style. No gradients."""

    def __init__(self, size: int, plan: Mapping[str, Style]) -> None:
        self.size, self.plan, self.barrier = size, plan, threading.Barrier(size)
        self.values: list[Any] = [None] * size
        self.inputs: list[dict[str, Tensor]] = [{} for _ in range(size)]

    def run(self, whole: nn.Module, work: Callable[[nn.Module], Tensor]) -> list[Tensor]:
        """Return work(model) of every rank, each with its part of a copy of the whole model.

        Raises: what the first of them raised.
        """
        models = [self._split(copy.deepcopy(whole), rank) for rank in range(self.size)]

        def start(rank: int) -> Tensor:
            try:
                with torch.no_grad():
                    return work(models[rank])
            except BaseException:
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(start, rank) for rank in range(self.size)]
        errors = [error for future in futures if (error := future.exception())]
        if errors:  # the others found the barrier broken
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        return [future.result() for future in futures]

    def whole_with_other_inputs(self) -> list[str]:
        """Return the modules with weights of their own that are not split and did not see the same on both ranks."""
        return [
            name
            for name, seen in self.inputs[0].items()
            if not self._style(name) and not torch.allclose(seen, self.inputs[1][name], rtol=1e-4, atol=1e-5)
        ]

    def _split(self, model: nn.Module, rank: int) -> nn.Module:
        for name, module in model.named_modules():
            style = self._style(name)
            if style in ("column", "column_gathered"):
                self._take(module, rank, {"weight": 0, "bias": 0})
            if style in ("row", "row_of_whole"):
                self._take(module, rank, {"weight": 1})
                if rank and getattr(module, "bias", None) is not None:
                    module.register_parameter("bias", None)  # the first rank adds it
                module.register_forward_hook(lambda _, inputs, out, rank=rank: sum(self._meet(out, rank)))
            if style == "row_of_whole":
                module.register_forward_pre_hook(lambda _, x, rank=rank: (x[0].chunk(self.size, dim=-1)[rank],))
            if style == "column_gathered":
                module.register_forward_hook(lambda _, x, out, rank=rank: torch.cat(self._meet(out, rank), dim=-1))
            if list(module.parameters(recurse=False)):
                module.register_forward_pre_hook(self._noting(name, rank), with_kwargs=True)
        return model

    def _style(self, name: str) -> Style | None:
        return next((style for pattern, style in self.plan.items() if fnmatchcase(name, pattern)), None)

    def _noting(self, name: str, rank: int) -> Callable[..., None]:
        """Return a hook that keeps the first tensor that a module is given."""

        def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor)), None)
            if seen is not None:
                self.inputs[rank][name] = seen.detach().float()

        return note

    def _take(self, module: nn.Module, rank: int, dims: Mapping[str, int]) -> None:
        """Leave a module its part of the tensors of these names, along these dims."""
        for name, dim in dims.items():
            if (full := getattr(module, name, None)) is not None:
                setattr(module, name, nn.Parameter(full.detach().chunk(self.size, dim=dim)[rank].clone()))

    def _meet(self, out: Tensor, rank: int) -> list[Tensor]:
        """Return what all ranks bring, in their order."""
        self.values[rank] = out
        self.barrier.wait(_TIMEOUT_S)
        values = list(self.values)
        self.barrier.wait(_TIMEOUT_S)
        return values
