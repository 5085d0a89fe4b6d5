"""A trained model from a checkpoint, whole and in this process, whatever the layout that wrote it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from parallel import checkpoint
from parallel.cluster import Rank
from parallel.config import RunConfig
from parallel.initialise import tie
from parallel.layout import Layout
from parallel.resolve import Work, resolve

# What says which model it is, and not how it was divided.
_KEPT = ("model", "size", "data", "seq_len", "norm", "seed", "channels_last", "precision")


@dataclass(frozen=True)
class Trained:
    """A model ready to be used: in eval mode, on the accelerator if there is one. path: the checkpoint read."""

    path: Path
    step: int
    work: Work
    model: nn.Module

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def restore(path: str | Path) -> Trained:
    """Read a checkpoint `step-N`, or of the folder of a run the best one (the newest where none was evaluated).

    Raises: DataError when it cannot be read.
    """
    folder = find(Path(path))
    weights = checkpoint.read_weights(folder)  # first: it verifies the files
    facts = checkpoint.read_facts(folder)
    work = resolve(RunConfig.from_dict({name: facts.run.get(name) for name in _KEPT} | {"layout": Layout()}))
    model = work.new_model().to_empty(device=Rank.from_env().device)
    tie(model, work.spec.tied)
    model.load_state_dict(weights | {name: weights[origin] for name, origin in work.spec.tied.items()})
    return Trained(folder, facts.step, work, model.eval())


def find(path: Path) -> Path:
    """Return the checkpoint that a path stands for; a path that has none is returned as it is."""
    if path.name.startswith("step-") or not path.is_dir():
        return path
    return checkpoint.best(path) or checkpoint.latest(path) or path
