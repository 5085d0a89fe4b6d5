"""Parts that models of transformers compute in fp32 whatever their weights are: in fp64 they stay in fp64.

Their norms, routers and scores round to fp32. Where a layout is compared in fp64, two processes that differ in the last
bit of fp64 would now and then differ in that of fp32 after such a part.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def keep_wide(modules: list[nn.Module]) -> None:
    """Have modules, in place, compute in fp64 all of what they are given in fp64."""
    for module in modules:
        module.forward = MethodType(_forward, module)  # a method, so that a copy of the module calls its own


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    if not any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args):
        return type(self).forward(self, *args, **kwargs)
    with _Wide():
        return type(self).forward(self, *args, **kwargs)


class _Wide(TorchFunctionMode):
    """Takes fp64 where fp32 is asked for of a tensor that is in fp64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if x is torch.float32 else x for x in args)
            kwargs = {name: torch.float64 if x is torch.float32 else x for name, x in kwargs.items()}
        return func(*args, **kwargs)
