"""Whether a model computes in a lower precision than it was asked to, so that fp64 shows more than faults."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Narrowed(TorchDispatchMode):
    """Notes whether a step makes fp32 of fp64, as models do that compute their loss in a precision of their own."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.seen = self.seen or any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args)
        return out
