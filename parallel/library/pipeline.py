"""What a pipeline stage of an own module is: the blocks in turn, with what the program says runs before and after."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from paralab.errors import LayoutError
from paralab.models.spec import Cut

Run = Callable[..., Any]


@dataclass(frozen=True)
class Pipeline:
    """What runs before and after the blocks of a module, for layouts with pipeline stages.

    before(module, *inputs) returns what enters the first block, after(module, hidden) what the module returns; either
    may also be the name of a module, or several names, which are applied in turn. block(module, block, hidden) runs one
    block, where more than block(hidden) is needed. What passes between stages is a floating-point tensor
    (rows, ...) or a tuple of them.
    """

    before: str | Iterable[str] | Run
    after: str | Iterable[str] | Run
    block: Run | None = None

    def run(self, module: nn.Module, cut: Cut, blocks: Iterable[nn.Module], *hidden: Any, **named: Any) -> Any:
        """Run what a stage holds. hidden: the inputs of the model, or what the stage before returned."""
        out: Any = _applied(self.before, module, *hidden, **named) if cut.first else _single(hidden)
        for block in blocks:
            given = out if isinstance(out, tuple) else (out,)
            out = self.block(module, block, *given) if self.block is not None else block(*given)
        given = out if isinstance(out, tuple) else (out,)
        return _applied(self.after, module, *given) if cut.last else out

    def needs(self, module: nn.Module, *hidden: Any, before: bool, **named: Any) -> tuple[set[int], Any]:
        """Return the ids of the tensors of a module that one of the two ends takes, and what it returns.

        module, hidden: on the meta device. before: of `before`, else of `after`.
        """
        seen = _Seen()
        with seen:
            out = _applied(self.before if before else self.after, module, *hidden, **named)
        return seen.ids, out


def _single(hidden: tuple[Any, ...]) -> Any:
    return hidden[0] if len(hidden) == 1 else hidden


def _applied(what: str | Iterable[str] | Run, module: nn.Module, *given: Any, **named: Any) -> Any:
    if callable(what):
        return what(module, *given, **named)
    out: Any = None
    for i, name in enumerate((what,) if isinstance(what, str) else tuple(what)):
        part = module.get_submodule(name)
        out = part(*given, **named) if i == 0 else part(*(out if isinstance(out, tuple) else (out,)))
    return out


class _Seen(TorchFunctionMode):
    """Notes which tensors take part in what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.ids.add(id(leaf))
        return func(*args, **(kwargs or {}))


def leave_out(part: nn.Module, keep: set[int], blocks: Iterable[str]) -> None:
    """Remove, in place, the blocks of these names, and every other tensor whose id is not among those to keep."""
    for name in blocks:
        container, _, key = name.rpartition(".")
        part.get_submodule(container)._modules[key] = None
    for module in part.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None and id(tensor) not in keep:
                    store[name] = None


def check_names(pipeline: Pipeline, module: nn.Module) -> None:
    """Raise LayoutError where `before` or `after` names a module that there is not."""
    names = {name for name, _ in module.named_modules()}
    for end in (pipeline.before, pipeline.after):
        for name in () if callable(end) else (end,) if isinstance(end, str) else tuple(end):
            if name not in names:
                from paralab.errors import did_you_mean

                raise LayoutError(
                    f"pipeline names the module {name!r}, and there is none{did_you_mean(name, names)}: use one of "
                    f"{', '.join(name for name, _ in module.named_children())}, or a function"
                )
