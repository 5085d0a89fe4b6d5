"""What a command finds around it: the system, its folder, its limits, and a torch that can be imported.

Looked at before anything heavy is loaded. What is missing here would end later, in the words of somebody else.
"""

import os
import traceback
from importlib.util import find_spec

from paralab.errors import UsageError

OPEN_FILES = 64  # of one process, at least: the libraries, a log for each rank, and connections to other ranks


def check() -> None:
    """Raise UsageError where no command can run."""
    if find_spec("fcntl") is None:
        raise UsageError("paralab runs on Linux and macOS, and this is neither: on Windows, install and type it in WSL")
    try:
        os.getcwd()
    except FileNotFoundError:  # where libraries of torch cannot be loaded
        raise UsageError("the folder in which this was typed is gone: type it in another, after cd") from None
    import resource  # late: Windows has none

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < OPEN_FILES:
        raise UsageError(f"{files} files may be open at once, {OPEN_FILES} are needed: type ulimit -n 1024 before it")


def why_no_torch(error: BaseException) -> str | None:
    """Return why torch could not be imported, and what to do; None for an error of anything else."""
    frames = traceback.extract_tb(error.__traceback__)
    own = os.path.join("torch", "__init__.py")
    no_torch = isinstance(error, ModuleNotFoundError) and error.name == "torch"
    if not no_torch and not any(frame.name == "<module>" and frame.filename.endswith(own) for frame in frames):
        return None
    said = " ".join(str(error).split())[:160]
    told = [name for name in sorted(os.environ) if name.startswith(("TORCH_", "PYTORCH_"))]
    advice = f"unset {' '.join(told)}, or give a value that torch knows" if told else "install torch again"
    return f"torch cannot be imported ({type(error).__name__}: {said}): {advice}"
