"""What a step does that lets it differ from another without a fault: parts in a lower precision, and random numbers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Narrowed(TorchDispatchMode):
    """Notes whether a step makes fp32 of fp64, as models do that compute their loss in a precision of their own."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.seen = self.seen or any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args)
        return out


class Drawn(TorchDispatchMode):
    """Notes which operations draw random numbers: found[line that they are called from] is the operation.

    where: returns the line that is being run.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where, self.found = where, dict[str, str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and self._draws(func, args, kwargs or {}):
            self.found.setdefault(self.where(), str(func.overloadpacket).rpartition(".")[2])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _draws(func: Any, args: Any, kwargs: Any) -> bool:
        """Attention draws only where it has a dropout."""
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        return "attention" not in str(func) or bool(named.get("dropout_p", 0.0))


_NOT_OF_THE_PROGRAM = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


def line_of_program() -> str:
    """Return the line that is being run, of the innermost file that is neither torch's nor ours."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_OF_THE_PROGRAM):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else "the model"
