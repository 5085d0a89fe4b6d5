"""Save a trainer, and go on from what was saved, under the same layout or any other."""

from pathlib import Path

from paralab import checkpoint
from paralab.library.trainer import Trainer


def save(trainer: Trainer, folder: str | Path, *, keep_last: int = 3) -> Path:
    """Save a trainer after the steps that it has taken, in `folder/step-N`, and wait for it. Collective.

    Saved are parameters, buffers, optimizer states, the groups of the optimizer, the scheduler and the steps taken.
    keep_last: how many checkpoints of the folder are kept, the newest. Returns: the folder of this one.
    Raises: DataError where it cannot be written.
    """
    checkpoint.save(trainer.engine, folder, keep_last=keep_last, keep_best=False)
    return Path(folder) / f"step-{trainer.steps_done}"


def load(trainer: Trainer, path: str | Path) -> int:
    """Go on from a checkpoint: a folder `step-N`, or the newest in the folder that `save` was given. Collective.

    It may have been saved under any layout, at any number of processes.
    Returns: the steps done, so that the data can go on there: shard(batches, skip=steps).
    Raises: DataError where it cannot be read; ConfigError where it is of another module or optimizer.
    """
    return checkpoint.load(trainer.engine, path)
