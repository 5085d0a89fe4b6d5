"""Where metrics of a training run go besides the screen: TensorBoard, trackio. Neither is imported before it is used.

A sink takes `write("train", step, {"loss": 4.5})` and is closed at the end.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from paralab.errors import ConfigError, WriteError


class Sink(Protocol):
    """Takes numbers of one step."""

    def write(self, group: str, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the run: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder / "tensorboard"
        with _one_line(self.folder):
            self.writer = SummaryWriter(str(self.folder))
        self.excepthook, threading.excepthook = threading.excepthook, self._hook

    def write(self, group: str, step: int, values: Mapping[str, float]) -> None:
        with _one_line(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        try:
            with _one_line(self.folder):
                self.writer.close()
        finally:
            threading.excepthook = self.excepthook

    def _hook(self, raised: threading.ExceptHookArgs) -> None:
        """Print no trace of tensorboard's own thread: the next write raises what ended it."""
        if not type(raised.thread).__module__.startswith("tensorboard"):
            self.excepthook(raised)


class Trackio:
    """A run of the project `paralab`, named like its folder: `trackio show --project paralab`.

    Where trackio keeps it is its own affair (TRACKIO_DIR, TRACKIO_SPACE_ID). A run that is resumed goes on there.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import trackio

        self.run = trackio.init(
            project="paralab",
            name=folder.name,
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, group: str, step: int, values: Mapping[str, float]) -> None:
        self.run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


@contextmanager
def _one_line(place: Path) -> Iterator[None]:
    """Raise WriteError in the place of an OSError, which may name no file."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{place} cannot be written ({error.strerror or error}): make room there, or leave --log-to out"
        ) from None


SINKS: Mapping[str, Callable[[Path, Mapping[str, Any]], Sink]] = {"tensorboard": TensorBoard, "trackio": Trackio}


def check(names: Iterable[str]) -> None:
    """Raise ConfigError when the package of a sink is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"--log-to {name} needs a package: pip install 'paralab[{name}]'")


def open_sinks(names: Iterable[str], folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """Open the sinks of these names for the run in this folder. config: its options."""
    return [SINKS[name](folder, config) for name in dict.fromkeys(names)]
