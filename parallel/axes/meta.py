"""Running a model on the meta device, also where it keeps tensors that are neither parameters nor buffers."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only


class AllOnMeta(TorchFunctionMode):
    """Takes tensors that have values along to the meta device, where they meet one that is there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if len({x.is_meta for x in tensors}) > 1:
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        return func(*args, **kwargs)


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")
