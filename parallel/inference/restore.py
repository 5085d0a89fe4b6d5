"""Restore a trained model from a checkpoint of any layout, whole, in this process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from paralab import checkpoint
from paralab.axes.initialise import FirstValues, tie
from paralab.checkpoint.folder import FACTS
from paralab.checkpoint.same_work import TOKENIZER, tokenizer_of
from paralab.errors import DataError, UsageError
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.requested_model import MODEL_OPTIONS
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.rank import Rank

# What says which model it is, and not how it was divided.
_KEPT = ("model", "size", "data", "seed", "precision", "tokenizer", "held_out_class", *MODEL_OPTIONS)


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


def restore(path: str | Path, *, model: str | None = None, tokenizer: str | None = None) -> Trained:
    """Read a checkpoint `step-N`, or of the folder of a run the best one (the newest where none was evaluated).

    model, tokenizer: what to take for those that it says it has, where their files lie elsewhere now.
    Raises: DataError when it cannot be read, its tensors or its tokenizer are not those that it says it has, or a
    tensor is not finite.
    """
    folder = find(Path(path))
    weights = checkpoint.read_weights(folder)  # first: it verifies the files
    facts = checkpoint.read_facts(folder)
    work = _work(facts, folder, model=model, tokenizer=tokenizer)
    _check_tokenizer(facts, work, folder)
    restored = work.new_model().to_empty(device=Rank.from_env().device)
    tied = work.spec.tied_in(work.model_config)
    tie(restored, tied)
    _check_fit(weights, restored, work=work, folder=folder)
    _check_finite(weights, folder)
    restored.load_state_dict(weights | {name: weights[origin] for name, origin in tied.items()})
    FirstValues(work.spec, work.model_config, work.run.seed).fill_unsaved(restored)
    return Trained(folder, facts.step, work, restored.eval())


def find(path: Path) -> Path:
    """Return the checkpoint that a path stands for; a path that has none is returned as it is.

    Raises: NewerFormatError where a newer version has written one into the folder, which may be the one that is meant.
    """
    if checkpoint.is_checkpoint(path) or not path.is_dir():
        return path
    for there in checkpoint.checkpoints(path):
        checkpoint.check_format(there)
    return checkpoint.best(path) or checkpoint.latest(path) or path


def _work(facts: checkpoint.Facts, folder: Path, **instead: str | None) -> Work:
    """Return the work that a checkpoint says it belongs to, on one process. instead: of options that it says."""
    given = {name: value for name, value in instead.items() if value is not None}
    kept = {name: facts.run.get(name) for name in _KEPT} | given
    n_classes = facts.work.get("n_classes")  # as trained: the data may be elsewhere by now
    try:
        return resolve(RunConfig.from_dict(kept | {"n_classes": n_classes, "layout": Layout()}))
    except UsageError as error:
        raise DataError(f"{folder / FACTS}: run: {error}") from None


def _check_tokenizer(facts: checkpoint.Facts, work: Work, folder: Path) -> None:
    """Raise DataError where the file of its tokenizer is not the one that a checkpoint was trained with."""
    was = facts.work.get(TOKENIZER)
    if was is not None and (now := tokenizer_of(work.model_config)) != was:
        raise DataError(
            f"{folder} was trained with {was}, and {work.run.tokenizer} is {now}: give --tokenizer the file that it "
            "was trained with"
        )


def _check_fit(weights: Mapping[str, Tensor], model: nn.Module, *, work: Work, folder: Path) -> None:
    """Raise DataError unless the tensors of a checkpoint are those of the model."""
    described = f"{folder / FACTS} says {work.spec.name} {work.size}"
    tied = work.spec.tied_in(work.model_config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name in sorted(state.keys() ^ weights.keys()):
        there = "has no" if name in state else "has an extra"
        raise DataError(f"{folder} {there} {name}, and {described}: {_ADVICE}")
    for name, tensor in state.items():
        if weights[name].shape != tensor.shape:
            raise DataError(
                f"{folder}: {name} is {tuple(weights[name].shape)} there and {tuple(tensor.shape)} in the model, and "
                f"{described}: {_ADVICE}"
            )


def _check_finite(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raise DataError for weights of a training that diverged: what is computed with them looks like results."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise DataError(f"{folder}: {name} is not finite, its training diverged: use an earlier checkpoint")


_ADVICE = "use a checkpoint as it was saved"
