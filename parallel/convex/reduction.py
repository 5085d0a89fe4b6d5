"""Sums over ranks, and how many bytes this rank has sent for them."""

from collections.abc import Callable
from fractions import Fraction

from torch import Tensor

from paralab.axes.forms import wire_bytes


class CountedReduction:
    """Call `all_reduce`, and count the bytes that leave this rank with its backend (paralab.axes.forms)."""

    def __init__(self, all_reduce: Callable[[Tensor], Tensor], *, ranks: int, backend: str) -> None:
        """all_reduce: returns the sum of tensors of any shape over the ranks."""
        self._all_reduce, self._ranks, self._backend = all_reduce, ranks, backend
        self.sent_bytes = Fraction(0)

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor of any shape over the ranks."""
        self.sent_bytes += wire_bytes("all_reduce", tensor.nbytes, self._ranks, backend=self._backend)
        return self._all_reduce(tensor)
