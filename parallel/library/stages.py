"""Which tensors of an own module each stage of a pipeline holds: those of its blocks, and those that its ends use."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from paralab.axes.blocks import blocks_of
from paralab.axes.meta import AllOnMeta
from paralab.errors import LayoutError, ParalabError
from paralab.library.batches import Form
from paralab.library.pipeline import Pipeline
from paralab.library.values import tensors_of
from paralab.models.spec import Cut


@dataclass(frozen=True)
class Needs:
    """Full names of the tensors of a module that take part: before the blocks, in each of them, and after them."""

    before: frozenset[str]
    blocks: tuple[frozenset[str], ...]
    after: frozenset[str]

    def of(self, cut: Cut) -> frozenset[str]:
        """Return the names of those that a stage needs."""
        ends = (self.before if cut.first else frozenset()) | (self.after if cut.last else frozenset())
        return ends.union(*(self.blocks[number] for number in cut.blocks))


def needs_of(module: nn.Module, pipeline: Pipeline, form: Form, example: tuple[Tensor, ...]) -> Needs:
    """Run a whole module once, and note what takes part where.

    module, example: on the meta device; example: the inputs as flat tensors (rows, ...).
    Raises: LayoutError for a parameter that no stage would have, and where the module does not run on that device.
    """
    blocks, noted = [block for _, block in sorted(blocks_of(module).items())], _Noted(module)

    def run(*inputs: Any, **named: Any) -> Needs:
        before, hidden = noted.during(lambda: pipeline.enter(module, *inputs, **named))
        used = []
        for block in blocks:
            taken, hidden = noted.during(lambda block=block, hidden=hidden: pipeline.through(module, block, hidden))  # type: ignore[misc]
            used.append(taken | noted.names_of(tensors_of(block).values()))
        after, _ = noted.during(lambda: pipeline.leave(module, hidden))
        return Needs(before, tuple(used), after)

    try:
        with torch.device("meta"), AllOnMeta(), torch.no_grad():
            needs = form.call(run, example)
    except ParalabError:
        raise
    except Exception as error:  # of the module's own code, which may raise any
        raise LayoutError(
            f"what passes between the stages of a pipeline is found out without values, and {type(module).__name__} "
            f"does not run so: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    used = needs.before.union(needs.after, *needs.blocks)
    spare = frozenset(name for name, _ in module.named_buffers(remove_duplicate=False) if name not in used)
    if unused := [name for name, _ in module.named_parameters() if name not in used]:
        raise LayoutError(
            f"{unused[0]} is in no block, and neither before nor after of pipeline uses it: nobody would train it; "
            "use it in one of them, or delete it"
        )
    return replace(needs, before=needs.before | spare)  # kept by the first stage, so that checkpoints have them


class _Noted:
    """Finds the names of the tensors that take part in something; a shared one has several."""

    def __init__(self, module: nn.Module) -> None:
        self.names: dict[int, set[str]] = {}
        for name, tensor in tensors_of(module).items():
            self.names.setdefault(id(tensor), set()).add(name)

    def during(self, run: Callable[[], Any]) -> tuple[frozenset[str], Any]:
        seen = _Seen()
        with seen:
            out = run()
        return self.names_of(seen.tensors), out

    def names_of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        return frozenset(name for tensor in tensors for name in self.names.get(id(tensor), ()))


class _Seen(TorchFunctionMode):
    """Keeps the tensors that functions of torch are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.tensors += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        return func(*args, **(kwargs or {}))


def leave_out(part: nn.Module, keep: frozenset[str], blocks: Iterable[str]) -> None:
    """Remove, in place, the blocks of these names, and every other tensor whose name is not among those to keep."""
    for name in blocks:
        container, _, key = name.rpartition(".")
        part.get_submodule(container)._modules[key] = None
    for prefix, module in part.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):
            for name in store:
                if (f"{prefix}.{name}" if prefix else name) not in keep:
                    store[name] = None
