"""Single operations of a model: what kind each is, how large, and how often it runs.

The same description is made of operations that are timed on a device (`paralab calibrate`) and of those that a model
runs on tensors without values, so that the seconds of one can be looked up for the other.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCT, CONVOLUTION, ATTENTION = "product", "convolution", "attention"
ROWS = "sum of rows"  # over the outer dims, of which each row adds to all results: slower than one sum of all
BACKWARD = "_backward"
_FLASH = "_scaled_dot_product_"
_FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "resize_")
_LOOKED_UP = ("index", "index_put_", "_index_put_impl_", "embedding", "gather", "index_select")


@dataclass(frozen=True)
class Operation:
    """One operation. kind: a family of kernels. dtype: of its widest input, as torch names it.

    shape: sizes that its speed depends on: (m, n, k) of a product, (samples and pixels, channels in, channels out,
    elements of the kernel) of a convolution, (heads of all samples, positions of queries, of keys, elements of a head,
    whether it is causal) of attention; () of others. flops: multiplications and additions; 0 where the bytes of its
    tensors decide. bytes: of all tensors that it reads and writes.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    flops: float
    bytes: int


def describe(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Operation | None:
    """Return what an operation of torch's dispatcher is; None for one that only looks at a tensor in another way."""
    name = func._schema.name.removeprefix("aten::")
    if name.startswith("prim::") or name in _FREE or _is_view(func):
        return None
    inputs, results = list(_tensors((args, tuple(kwargs.values())))), list(_tensors(result))
    tensors = [*inputs, *results]
    size = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
    dtype = next((str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()), "int64")
    if name in ("mm", "addmm", "bmm", "baddbmm", "addmm_", "baddbmm_"):
        a, b = [t for t in _tensors(args) if t.dim() >= 2][-2:]
        batch, m, k, n = math.prod(a.shape[:-2]), a.shape[-2], a.shape[-1], b.shape[-1]
        return Operation(PRODUCT, dtype, (m, n, k), 2.0 * batch * m * k * n, size)
    if name.startswith("convolution"):
        return _convolution(name, dtype, args, size)
    if name.startswith(_FLASH):
        return _attention(name, dtype, args, kwargs, size)
    if name == "sum" and results[0].numel() > 1 and results[0].shape[-1] == inputs[0].shape[-1]:
        return Operation(ROWS, dtype, (), 0.0, size)
    if name in _LOOKED_UP:  # of a table only some rows
        size = 2 * min(t.numel() * t.element_size() for t in tensors if t.is_floating_point())
    return Operation(name.rstrip("_"), dtype, (), 0.0, size)


def _is_view(func: Any) -> bool:
    """Return whether an operation returns a tensor that shares the memory of its input and writes nothing."""
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns if r.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


def _convolution(name: str, dtype: str, args: tuple[Any, ...], size: int) -> Operation:
    backward = name.endswith(BACKWARD)
    x, weight = (args[1], args[2]) if backward else (args[0], args[1])
    strides = args[4] if backward else args[3]
    pixels = x.shape[0] * math.prod(-(-n // s) for n, s in zip(x.shape[2:], strides, strict=True))
    out, inside, kernel = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    wanted = sum(args[-1][:2]) if backward else 1  # gradients of the input and of the weight
    flops = 2.0 * pixels * out * inside * kernel * wanted
    return Operation(CONVOLUTION + BACKWARD * backward, dtype, (pixels, inside, out, kernel), flops, size)


def _attention(name: str, dtype: str, args: tuple[Any, ...], kwargs: dict[str, Any], size: int) -> Operation:
    backward = BACKWARD in name
    q, k = (args[1], args[2]) if backward else (args[0], args[1])
    flags = [*args, *kwargs.values()]
    causal = any(flag is True for flag in flags)
    heads, queries, keys, each = q.shape[0] * q.shape[1], q.shape[2], k.shape[2], q.shape[3]
    products = 5 if backward else 2
    flops = 2.0 * products * heads * queries * keys * each * (0.5 if causal else 1.0)
    return Operation(ATTENTION + BACKWARD * backward, dtype, (heads, queries, keys, each, int(causal)), flops, size)


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for one in found:
            yield from _tensors(one)


@dataclass
class Work:
    """The operations of a pass, and how often each runs. views: operations that only look at a tensor anew."""

    operations: Counter[Operation]
    views: int = 0

    @property
    def launches(self) -> int:
        """How many operations the host starts, views among them."""
        return self.operations.total() + self.views


class Recorder(TorchDispatchMode):
    """Note each operation that runs inside, on tensors with values or without: `with Recorder() as recorder`.

    see: called with what each operation returns.
    A value that Python asks for is 1, where there is none: a loss, its scale, and whether all is well.
    """

    def __init__(self, see: Callable[[Any], None] = lambda result: None) -> None:
        super().__init__()
        self.see = see
        self.work = Work(Counter())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        result = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, result)
        return result

    def note(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """Count an operation that has run."""
        self.see(result)
        operation = describe(func, args, kwargs, result)
        if operation is None:
            self.work.views += 1
        else:
            self.work.operations[operation] += 1
