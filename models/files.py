"""A model in a file of the user's own, as `--model FILE.py:NAME`: loaded by its path, under a module name of its own.

Imports no torch: what a file is called is known before anything heavy is loaded.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from paralab.errors import ConfigError, ParalabError, did_you_mean

if TYPE_CHECKING:
    from paralab.models.spec import ModelSpec

SPEC = "SPEC"  # the name that is meant where none is given
FORM = "FILE.py:NAME"
MOVED = "Model in the place of the one in the checkpoint, where its file has moved since"

_FORM = re.compile(r"(?P<file>.+\.py)(?::(?P<name>[^:]*)(?::(?P<size>.+))?)?")
_loaded: "dict[ModelFile, Loaded]" = {}


@dataclass(frozen=True)
class ModelFile:
    """Which model: path of the file, absolute, and name of the `ModelSpec` in it."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def label(self) -> str:
        """What it is called where its folder does not matter."""
        return f"{os.path.basename(self.path)}:{self.name}"

    @property
    def shown(self) -> str:
        """What to type for it in the working directory."""
        inside = os.path.relpath(self.path)
        return f"{self.path if inside.startswith('..') else inside}:{self.name}"


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the spec, and the sha256 of the file's content that it was made from."""

    spec: "ModelSpec"
    sha256: str


def parse(text: str) -> ModelFile | None:
    """Read FILE.py or FILE.py:NAME, from the working directory; None for what is neither."""
    found = _FORM.fullmatch(text)
    if found is None or found["size"]:
        return None
    return ModelFile(os.path.abspath(found["file"]), found["name"] or SPEC)


def without_size(text: str) -> tuple[str, str | None]:
    """Return model and size of MODEL, MODEL:SIZE, FILE.py, FILE.py:NAME or FILE.py:NAME:SIZE; the name may be empty."""
    found = _FORM.fullmatch(text)
    if found is None:
        model, _, size = text.partition(":")
        return model, size or None
    return f"{found['file']}:{found['name'] or SPEC}", found["size"]


def line_in(error: BaseException) -> str:
    """Return the last line of a model's file that an error came from, as "FILE.py:3: "; "" where it came from none."""
    own = {file.path for file in _loaded}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    return f"{os.path.basename(lines[-1].filename)}:{lines[-1].lineno}: " if lines else ""


def load(file: ModelFile) -> Loaded:
    """Run a file, unless it has been run with the content that it has now, and return its spec.

    Modules beside the file can be imported by it. Raises: ConfigError, with what to change.
    """
    try:
        with open(file.path, "rb") as opened:
            content = opened.read()
    except FileNotFoundError:
        raise ConfigError(
            f"--model {file.shown}: there is no file {file.path}: give the path of one, as --model {FORM}"
        ) from None
    except OSError as error:
        raise ConfigError(f"--model {file.shown}: {file.path} cannot be read ({error.strerror})") from None
    sha256 = hashlib.sha256(content).hexdigest()
    known = _loaded.get(file)
    if known is None or known.sha256 != sha256:
        known = _loaded[file] = Loaded(_spec_in(_run(file, content, sha256), file), sha256)
    return known


def _run(file: ModelFile, content: bytes, sha256: str) -> dict[str, Any]:
    """Run the content of a file as a module; return what it defines."""
    stem = re.sub(r"\W", "_", os.path.basename(file.path)[:-3])
    name = f"paralab_model_{stem}_{hashlib.sha256(file.path.encode()).hexdigest()[:8]}_{sha256[:8]}"
    if name in sys.modules:
        return vars(sys.modules[name])
    found = importlib.util.spec_from_file_location(name, file.path)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    folder = os.path.dirname(file.path)
    if folder not in sys.path:
        sys.path.append(folder)  # last, and for good: a function may import a module beside the file later
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        with _said_when_ended():
            exec(compile(content, file.path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ConfigError(f"--model {file.shown}: {_why(error, file)}") from None
    return vars(module)


@contextlib.contextmanager
def _said_when_ended() -> Iterator[None]:
    """Make what would end this process without a word raise SystemExit, as `sys.exit` does."""
    exit_now, own = os._exit, os.getpid()

    def end(status: int) -> NoReturn:
        if os.getpid() != own:  # of a process that the file has forked
            exit_now(status)
        raise SystemExit(status)

    os._exit = end
    try:
        yield
    finally:
        os._exit = exit_now


def _why(error: BaseException, file: ModelFile) -> str:
    """Say what is wrong with a file that cannot be run, with the line of it."""
    said = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename == file.path:
        return f"{file.path}:{error.lineno}: {error.msg} ({type(error).__name__}): correct the file"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file.path]
    place = f"{file.path}:{lines[-1]}" if lines else file.path
    if isinstance(error, ModuleNotFoundError):
        return f"{place}: there is no module {error.name}: install it, or put it beside the file"
    if isinstance(error, SystemExit):
        return f"{place}: ends the program while it is imported: put that under if __name__ == '__main__'"
    if isinstance(error, ParalabError):
        return f"{place}: {said}"
    return f"{place}: {type(error).__name__}: {said}: correct the file"


def _spec_in(defined: dict[str, Any], file: ModelFile) -> "ModelSpec":
    from paralab.models.spec import ModelSpec

    spec = defined.get(file.name)
    if isinstance(spec, ModelSpec):
        return spec
    there = [name for name, value in defined.items() if isinstance(value, ModelSpec)]
    if there:
        lines = " or ".join(f"--model {ModelFile(file.path, name).shown}" for name in there)
        advice = f"{did_you_mean(file.name, there)}: it has {', '.join(there)}, use {lines}"
    else:
        advice = f", and no other: add {file.name} = ModelSpec(...) from paralab.models.spec (docs/own-model.md)"
    got = "has no" if file.name not in defined else f"has a {type(spec).__name__} as"
    kind = "ModelSpec " if file.name not in defined else ""
    needed = "" if file.name not in defined else ", and not a ModelSpec"
    raise ConfigError(f"--model {file.shown}: the file {got} {kind}{file.name}{needed}{advice}")
