"""What a pipeline stage of an own module is: the blocks in turn, with what the program says runs before and after."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from paralab.errors import LayoutError, did_you_mean
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
        out: Any = self.enter(module, *hidden, **named) if cut.first else hidden
        for block in blocks:
            out = self.through(module, block, out)
        return self.leave(module, out) if cut.last else out

    def enter(self, module: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Return what enters the first block."""
        return _applied(self.before, module, *inputs, **named)

    def through(self, module: nn.Module, block: nn.Module, hidden: Any) -> Any:
        """Return what leaves a block. hidden: what enters it, one tensor or several."""
        given = hidden if isinstance(hidden, tuple) else (hidden,)
        return self.block(module, block, *given) if self.block is not None else block(*given)

    def leave(self, module: nn.Module, hidden: Any) -> Any:
        """Return what the model does. hidden: what left the last block, one tensor or several."""
        return _applied(self.after, module, *(hidden if isinstance(hidden, tuple) else (hidden,)))


def _applied(what: str | Iterable[str] | Run, module: nn.Module, *given: Any, **named: Any) -> Any:
    if callable(what):
        return what(module, *given, **named)
    out: Any = None
    for i, name in enumerate((what,) if isinstance(what, str) else tuple(what)):
        part = module.get_submodule(name)
        out = part(*given, **named) if i == 0 else part(*(out if isinstance(out, tuple) else (out,)))
    return out


def check_names(pipeline: Pipeline, module: nn.Module) -> None:
    """Raise LayoutError where `before` or `after` names a module that there is not."""
    names = {name for name, _ in module.named_modules()}
    for end in (pipeline.before, pipeline.after):
        for name in () if callable(end) else (end,) if isinstance(end, str) else tuple(end):
            if name not in names:
                raise LayoutError(
                    f"pipeline names the module {name!r}, and there is none{did_you_mean(name, names)}: use one of "
                    f"{', '.join(name for name, _ in module.named_children())}, or a function"
                )


def without_ends(module: nn.Module, blocks: tuple[str, ...]) -> str:
    """Say what to type where stages are asked for and nobody said what runs around the blocks."""
    children = [name for name, _ in module.named_children()]
    at = children.index(blocks[0].split(".")[0])
    before, after = children[:at] or ["embed"], children[at + 1 :] or ["head"]
    several = max(len(before), len(after)) > 1
    return (
        f"a pipeline needs to know what runs before and after the {len(blocks)} blocks {blocks[0]} ...: give "
        f"pipeline=paralab.Pipeline(before={_named(before)}, after={_named(after)}) and example=batch"
        + (", or a function in place of modules that do not run one after the other" if several else "")
    )


def _named(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else repr(tuple(names))
