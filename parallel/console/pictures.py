"""Pictures need matplotlib, an extra of the installation: where it is missing, that is said before any work."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = (".png", ".svg", ".pdf")


def check_can_draw(path: Path | str | None, *, otherwise: str = "") -> None:
    """Raise ConfigError where a path is that of a picture and nothing is there to draw it. otherwise: what to type."""
    if path is not None and Path(path).suffix.lower() in FORMS and find_spec("matplotlib") is None:
        advice = f", or use {otherwise}" if otherwise else ""
        raise ConfigError(f"drawing {path} needs matplotlib: pip install 'paralab[plot]'{advice}")


def figure_class() -> "Callable[..., Figure]":
    """Return what makes a figure of matplotlib. Raises: ConfigError where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"drawing needs matplotlib ({error}): pip install 'paralab[plot]'") from error
    return Figure
