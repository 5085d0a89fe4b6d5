"""What has to be told of an own module so that context ranks share its sequences, or data ranks divide its experts."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from paralab.axes.expert.layers import takes_tokens
from paralab.errors import ConfigError, LayoutError, did_you_mean
from paralab.layout import Layout
from paralab.models.sequence import Attend, Sequence, SequenceShape, take_all
from paralab.models.spec import Style


class Shared:
    """Cuts what a program hands to the loss as its modules cut what they are given.

    shape: of the sequences, as the program says; None where no layout may divide them.
    """

    def __init__(self, module: nn.Module, shape: SequenceShape | None) -> None:
        self.shape, self.ranks = shape, 1
        self.take: Callable[[Tensor, int], Tensor] = take_all
        self.own: Callable[..., None] | None = getattr(module, "share_sequence", None)
        if shape is not None:
            module.share_sequence = self.share  # type: ignore[assignment]  # which the context axis calls

    def share(self, take: Callable[[Tensor, int], Tensor], ranks: int) -> None:
        """Have this rank compute the positions that `take` takes, of tensors of any shape."""
        self.take, self.ranks = take, ranks
        if self.own is not None:
            self.own(take, ranks)

    def check(self, inputs: tuple[Tensor, ...]) -> None:
        """Raise ConfigError unless an input (rows, positions, ...) has as many positions as the program said."""
        if self.ranks > 1:
            self._need_positions("input", inputs, "pad or cut sequences to that length, or give another")

    def targets(self, given: Tensor | tuple[Tensor, ...]) -> Any:
        """Return targets (rows, positions, ...) of the positions of this rank.

        Raises: ConfigError where none has positions.
        """
        if self.ranks == 1:
            return given
        leaves = given if isinstance(given, tuple) else (given,)
        over_whole = "a loss over whole sequences is no mean over positions, use a layout without cp"
        self._need_positions("target", leaves, over_whole)
        cut = tuple(self.take(x, 1) if self._has_positions(x) else x for x in leaves)
        return cut if isinstance(given, tuple) else cut[0]

    def _need_positions(self, what: str, tensors: tuple[Tensor, ...], advice: str) -> None:
        if not any(map(self._has_positions, tensors)):
            assert self.shape is not None  # as context ranks are refused without it
            got = ", ".join(str(tuple(x.shape)) for x in tensors)
            raise ConfigError(
                f"no {what} has the {self.shape.length} positions of sequence=SequenceShape(...) in its second dim "
                f"(shapes {got}): {advice}"
            )

    def _has_positions(self, x: Tensor) -> bool:
        return self.shape is not None and x.ndim > 1 and x.shape[1] == self.shape.length


def check_sequence(layout: Layout, module: nn.Module, shape: SequenceShape | None) -> None:
    """Raise LayoutError where context ranks could not share the sequences of a module."""
    name = type(module).__name__
    if layout.cp == 1:
        return
    if shape is None:
        raise LayoutError(
            f"{name} has not said how its sequences divide: give sequence=paralab.models.sequence.SequenceShape(length,"
            " heads, kv_heads, causal=True), take positions by Sequence.take and attend by Attend (docs/library.md), "
            "or use a layout without cp"
        )
    for kind, missing in ((Attend, "attends by no Attend"), (Sequence, "takes positions by no Sequence.take")):
        if not any(isinstance(part, kind) for part in module.modules()):
            raise LayoutError(
                f"{name} {missing} (paralab.models.sequence), so that a rank would see its own positions alone: see "
                "docs/library.md, or use a layout without cp"
            )


def check_experts(layout: Layout, module: nn.Module, pattern: str | None, *, tensor: Mapping[str, Style]) -> None:
    """Raise LayoutError where data ranks could not divide the experts of a module. tensor: its tensor plan."""
    if layout.ep == 1:
        return
    name, every = type(module).__name__, dict(module.named_modules())
    if pattern is None:
        raise LayoutError(
            f"{name} has not said where its experts are: give experts='layers.*.experts', modules that are called with "
            "rows by expert and how many there are of each (docs/library.md), or use a layout without ep"
        )
    found = [part for path, part in every.items() if fnmatchcase(path, pattern)]
    if not found:
        patterns = {".".join("*" if part.isdigit() else part for part in path.split(".")) for path in every} - {""}
        raise LayoutError(
            f"experts={pattern!r} matches no module of {name}{did_you_mean(pattern, sorted(patterns))}: use the full "
            "names of its modules"
        )
    for part in found:
        own = list(part.parameters(recurse=False))
        if len({p.shape[0] if p.ndim else 0 for p in own}) != 1 or len(own) < len(list(part.parameters())):
            raise LayoutError(
                f"experts={pattern!r} matches a {type(part).__name__} that does not hold its experts as tensors of its "
                "own whose first dim counts them: stack their weights, or use a layout without ep"
            )
        if layout.tp > 1 and (takes_tokens(part) or tensor.get(pattern) != "experts"):
            raise LayoutError(
                f"ep{layout.ep} with tp{layout.tp} and experts={pattern!r}: each tensor rank would have a part of every"
                " expert, which takes experts that are called with rows and counts, and "
                f"tensor={{{pattern!r}: 'experts', ...}}: give these, or use a layout without tp"
            )
