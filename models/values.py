"""Reading a number off a tensor, where that is free."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def value_at_hand(tensor: Tensor) -> float | None:
    """Return the value of a tensor of shape (), None where there is none at hand.

    An accelerator would have to be waited for, and the tensors of a dry run have no values but for constants.
    """
    if isinstance(tensor, FakeTensor):
        return None if tensor.constant is None else tensor.constant.item()
    return tensor.item() if tensor.device.type == "cpu" else None
