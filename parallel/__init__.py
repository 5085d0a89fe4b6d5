"""Train a model under any parallelism strategy, prove that it still computes the same, and measure what it costs."""

import importlib.util
import sys
from pathlib import Path

__version__ = "0.2.0"

if __name__ == "paralab":
    _checkout = Path(__file__).resolve().parent.parent
    if (_checkout / "parallel" / "cli.py").is_file():  # not installed as a copy: models/ and the others lie beside
        __path__.append(str(_checkout))

    from paralab import axes  # which puts the built-in axes into the list that layouts are read by

    __all__ = ["axes"]
else:  # found in a checkout by the name of its folder: this is the package `paralab`, under that name
    if "paralab" not in sys.modules:
        _spec = importlib.util.spec_from_file_location("paralab", __file__, submodule_search_locations=list(__path__))
        assert _spec is not None and _spec.loader is not None
        sys.modules["paralab"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["paralab"])
    sys.modules[__name__] = sys.modules["paralab"]
