"""Train a model under any parallelism strategy, prove that it still computes the same, and measure what it costs."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paralab.axes.axis import Axis
    from paralab.layout import Layout
    from paralab.layout.words import register as register_axis
    from paralab.library.checkpoint import load, save
    from paralab.library.parallelize import parallelize
    from paralab.library.pipeline import Pipeline
    from paralab.library.plan import Plan, plan
    from paralab.library.prove import prove
    from paralab.library.prove_training import prove_training
    from paralab.library.trainer import Step, Trainer
    from paralab.library.world import World, join
    from paralab.models import register_model

__version__ = "0.2.0"
__all__ = [
    "Axis",
    "Layout",
    "Pipeline",
    "Plan",
    "Step",
    "Trainer",
    "World",
    "join",
    "load",
    "parallelize",
    "plan",
    "prove",
    "prove_training",
    "register_axis",
    "register_model",
    "save",
]

# Where each name is; they import torch, and a command line does not wait for it before it is known what runs.
_PLACES = {
    "Axis": "paralab.axes.axis:Axis",
    "Layout": "paralab.layout:Layout",
    "Pipeline": "paralab.library.pipeline:Pipeline",
    "Plan": "paralab.library.plan:Plan",
    "Step": "paralab.library.trainer:Step",
    "Trainer": "paralab.library.trainer:Trainer",
    "World": "paralab.library.world:World",
    "join": "paralab.library.world:join",
    "load": "paralab.library.checkpoint:load",
    "parallelize": "paralab.library.parallelize:parallelize",
    "plan": "paralab.library.plan:plan",
    "prove": "paralab.library.prove:prove",
    "prove_training": "paralab.library.prove_training:prove_training",
    "register_axis": "paralab.layout.words:register",
    "register_model": "paralab.models:register_model",
    "save": "paralab.library.checkpoint:save",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"paralab has no {name}: it has {', '.join(__all__)}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


if __name__ == "paralab":
    _checkout = Path(__file__).resolve().parent.parent
    if (_checkout / "parallel" / "cli.py").is_file():  # not installed as a copy: models/ and the others lie beside
        __path__.append(str(_checkout))

    from paralab.console import signals

    if signals.is_command():
        signals.end_at_once()  # until `cli.main` does so in order: what follows takes a while

    import paralab.axes  # noqa: F401  # puts the built-in axes into the list that layouts are read by
else:  # found in a checkout by the name of its folder: this is the package `paralab`, under that name
    if "paralab" not in sys.modules:
        _spec = importlib.util.spec_from_file_location("paralab", __file__, submodule_search_locations=list(__path__))
        assert _spec is not None and _spec.loader is not None
        sys.modules["paralab"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["paralab"])
    sys.modules[__name__] = sys.modules["paralab"]
