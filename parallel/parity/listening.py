"""Listen to a step of an engine: what enters and leaves every module, the gradients of that, and what follows backward.

The same listening serves a layout and its reference. Hooks stand outside of those by which layers are split, so what
they hear is what a module gets and gives in the whole model: this rank's piece of it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from paralab.axes.axis import Finish
from paralab.engines.native import NativeEngine


class Spot(NamedTuple):
    """A tensor that a module gets or gives. call: counts the calls of the module in one forward pass; leaf: the tensors
    of its arguments or of its result."""

    side: Literal["input", "output"]
    module: str
    call: int = 0
    leaf: int = 0


# (spot, whether it is the gradient of it, micro-batch, tensor)
Heard = Callable[[Spot, bool, int, Tensor], None]


class Listener:
    """Hears the modules of an engine. Micro-batches are counted from 0 in each step.

    last: whether a part gives the loss; what another part gives is heard from its last module. began: called with the
    number of each micro-batch before it enters the first part.
    """

    def __init__(
        self, parts: list[nn.Module], heard: Heard, *, last: list[bool], began: Callable[[int], None] | None = None
    ) -> None:
        self.heard, self.began = heard, began
        self.micro_batch = [-1] * len(parts)
        self.calls: list[dict[str, int]] = [{} for _ in parts]
        self.waiting: set[_Gradient] = set()
        for number, part in enumerate(parts):
            for name, module in part.named_modules():
                before, after = partial(self._before, number, name), partial(self._after, number, name)
                module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
                if name or last[number]:
                    module.register_forward_hook(after)

    def new_step(self) -> None:
        self.micro_batch = [-1] * len(self.micro_batch)
        while self.waiting:
            self.waiting.pop().handle.remove()

    def _before(self, part: int, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if _in_backward():  # a recomputed forward
            return
        if not name:
            self.micro_batch[part] += 1
            self.calls[part] = {}
            if self.began is not None and part == 0:
                self.began(self.micro_batch[part])
        call = self.calls[part][name] = self.calls[part].get(name, -1) + 1
        if name:
            self._hear(part, Spot("input", name, call), (args, kwargs))

    def _after(self, part: int, name: str, _: nn.Module, args: Any, out: Any) -> None:
        if not _in_backward():
            self._hear(part, Spot("output", name, self.calls[part].get(name, 0)), out)

    def _hear(self, part: int, spot: Spot, given: Any) -> None:
        micro_batch = self.micro_batch[part]
        for leaf, tensor in enumerate(_tensors(given)):
            here = spot._replace(leaf=leaf)
            self.heard(here, False, micro_batch, tensor)
            if tensor.requires_grad:
                self.waiting.add(_Gradient(self, here, micro_batch, tensor))


class _Gradient:
    """Waits for the gradient of one tensor, once: what a stage receives into is the same tensor every time."""

    def __init__(self, listener: Listener, spot: Spot, micro_batch: int, tensor: Tensor) -> None:
        self.listener, self.spot, self.micro_batch = listener, spot, micro_batch
        self.handle = tensor.register_hook(self)

    def __call__(self, grad: Tensor) -> None:
        self.handle.remove()
        self.listener.waiting.discard(self)
        self.listener.heard(self.spot, True, self.micro_batch, grad)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (tuple, list, Mapping)):
        for part in given.values() if isinstance(given, Mapping) else given:
            yield from _tensors(part)


BACKWARD, CLIP, UPDATE, SHARE = "backward", "clip", "update", "share"


def finished(axis: str) -> str:
    """Return the name of the moment after an axis has completed the gradients."""
    return f"finish {axis}"


def tell_moments(engine: NativeEngine, told: Callable[[str], None]) -> None:
    """Have an engine tell when backward is done, when each axis has completed the gradients, and when they are clipped,
    the optimizer has updated, and updates are shared. The engine is of no other use afterwards."""
    engine.forward_backward = _then(engine.forward_backward, partial(told, BACKWARD))
    engine.finish = [
        _then(finish, partial(told, finished(finish.axis if isinstance(finish, Finish) else "")))
        for finish in engine.finish
    ]
    setattr(engine, "_clip", _then(engine._clip, partial(told, CLIP)))  # noqa: B010
    setattr(engine.optimizer, "step", _then(engine.optimizer.step, partial(told, UPDATE)))  # noqa: B010
    if engine.share is not None:
        engine.share = _then(engine.share, partial(told, SHARE))


def _then(function: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        out = function(*args, **kwargs)
        then()
        return out

    return both
