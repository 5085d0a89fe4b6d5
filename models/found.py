"""What a `ModelSpec` leaves out, found in the module itself: its blocks, what is around them, what is tied.

It is read off a model on the meta device, which holds no values; those that its `__init__` gives are drawn on the CPU.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paralab.models.structure import find_blocks, find_tied, has_batch_norm


@dataclass(frozen=True)
class Found:
    """What is found in a model. blocks: full names, in order. first, last: what runs before and after all of them.

    tied: full name of a parameter -> full name of the one, defined before it, whose storage it shares.
    batch_norm: whether it has a norm of torch whose statistics are those of a batch.
    """

    blocks: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    tied: Mapping[str, str]
    batch_norm: bool


def look_into(model: nn.Module, blocks: tuple[str, ...] | None) -> Found:
    """Look into a whole model. blocks: full names of its blocks; None where they are to be found as well."""
    names = find_blocks(model) if blocks is None else blocks
    return Found(names, *around(model, names), find_tied(model), has_batch_norm(model))


def around(model: nn.Module, blocks: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the full names of the modules before and of those after all blocks, in the order of their definition.

    Parameters that lie beside them, in no module of their own, count as before. Without blocks there is neither.
    """
    first: list[str] = []
    last: list[str] = []
    seen = 0
    for name in beside(model, blocks):
        if name in blocks:
            seen += 1
        elif seen == 0:
            first.append(name)
        elif seen == len(blocks):
            last.append(name)
    return (tuple(first), tuple(last)) if blocks else ((), ())


def beside(module: nn.Module, blocks: tuple[str, ...], prefix: str = "") -> Iterator[str]:
    """Yield the full names of blocks, and of what lies beside them and beside the modules that hold them, in order."""
    if prefix == "" or any(block.startswith(prefix) for block in blocks):
        yield from (prefix + name for name, parameter in module._parameters.items() if parameter is not None)
    for key, child in module.named_children():
        name = prefix + key
        if name not in blocks and any(block.startswith(f"{name}.") for block in blocks):
            yield from beside(child, blocks, f"{name}.")
        else:
            yield name


def count_flops(model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> int:
    """Return the operations of the matrix products and convolutions of forward and backward, counted as they run.

    model: on the meta device. inputs, targets: a batch, of the shapes and dtypes that the model takes.
    """
    from torch.utils.flop_counter import FlopCounterMode  # late: not needed where a formula is given

    with FlopCounterMode(display=False) as counter:
        model(*(x.to("meta") for x in inputs), targets=targets.to("meta")).backward()
    return counter.get_total_flops()


def built(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """Build a model for real, on the CPU, with the values that `torch.manual_seed(seed)` before it would give.

    The generators of torch, NumPy and Python are seeded for it, and then go on as if nothing had been drawn.
    """
    before: tuple[Any, ...] = (random.getstate(), np.random.get_state())
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            return build()
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def move_plain_tensors(model: nn.Module, device: torch.device | str) -> None:
    """Give the plain tensors that are on the meta device memory on a device, as `to_empty` does for the others."""
    for module in model.modules():
        for name, tensor in list(plain_tensors(module)):
            if tensor.is_meta:
                setattr(module, name, torch.empty_like(tensor, device=device))


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a module holds as plain attributes, neither parameters nor buffers: name, tensor."""
    yield from ((name, value) for name, value in vars(module).items() if isinstance(value, Tensor))


class WithoutInit(TorchFunctionMode):
    """Leaves out the random numbers of `torch.nn.init`: on the meta device they bring the compiler along."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = getattr(func, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if drawn else func(*args, **kwargs)
