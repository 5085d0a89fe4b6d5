"""Some pictures need matplotlib, an extra of the installation: where it is missing, that is said before any work."""

from importlib.util import find_spec
from pathlib import Path

from paralab.errors import ConfigError

FORMS = (".svg", ".png", ".pdf")
_NEED_MATPLOTLIB = (".png", ".pdf")


def form_of(path: Path) -> str:
    """Return the form of a picture: svg, png or pdf."""
    return path.suffix.lower().removeprefix(".")


def check_can_draw(path: Path | str | None) -> None:
    """Raise ConfigError where a path is that of a picture and nothing is there to draw it."""
    if path is not None and Path(path).suffix.lower() in _NEED_MATPLOTLIB and find_spec("matplotlib") is None:
        raise ConfigError(f"drawing {path} needs matplotlib: pip install 'paralab[plot]', or use a name ending in .svg")
