"""Where something of a model stands in the file that it is from, for messages."""

import inspect
import traceback
from collections.abc import Callable
from pathlib import Path


def place(thing: object) -> str:
    """Return file and line of the class, function or method that something is or comes from."""
    kind = thing if inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
    try:
        return f"{Path(inspect.getsourcefile(kind) or '').name}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return getattr(kind, "__name__", str(kind))


def file_of(build: Callable[..., object]) -> str:
    """Return the file of the class or function that builds a model; an empty string where it is not known."""
    try:
        return inspect.getsourcefile(build) or ""
    except TypeError:
        return ""


def line_of(error: BaseException, build: Callable[..., object], *, otherwise: str) -> str:
    """Return the last line of the model's own file that an error came from, or `otherwise` where it has none."""
    file = file_of(build)
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else otherwise


def short(error: BaseException) -> str:
    """Return what an error says, in one line that is not long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
