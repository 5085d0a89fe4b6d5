"""Continue from a checkpoint: from one of a step, or from the newest of a run that can be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paralab.axes import eight_bits
from paralab.checkpoint import storage
from paralab.checkpoint.folder import (
    LATEST,
    Facts,
    check_format,
    checkpoints,
    is_checkpoint,
    latest,
    pointer,
    read_facts,
    verify,
)
from paralab.checkpoint.others import written_by_another
from paralab.checkpoint.random import new_random_chunks, set_random
from paralab.checkpoint.same_work import compare_work, other_options
from paralab.engines.engine import ResumableEngine
from paralab.engines.state import Shapes
from paralab.errors import DataError, NewerFormatError


def load(engine: ResumableEngine, path: str | Path, *, say: Callable[[str], None] = lambda text: None) -> int:
    """Continue from a checkpoint: `step-N`, or the newest one when the folder of a run is given. Collective.

    say: is told which options have other values than when it was saved, and where moments in 8 bits had to be rounded
    once more (on every rank).
    Returns: the steps done, where the data goes on.
    Raises: DataError when it cannot be read; ConfigError when it belongs to other work.
    """
    world = engine.context.mesh.world
    folder, facts, saved = _together(world, lambda rank, ranks: opened(Path(path), rank=rank, ranks=ranks))
    compare_work(folder, facts, engine.context)
    random = new_random_chunks(engine.context, saved)
    chunks = engine.new_state(saved)
    storage.load(chunks | random, folder, group=world)
    engine.take_state(chunks, saved)
    if engine.context.own is None and (others := other_options(facts.run, engine.context.run)):
        say(f"{folder} was saved with other options: {'; '.join(others)}")
    _tell_rounded(engine, say)
    set_random(engine.context, random)
    engine.steps_done = facts.step
    if facts.run.get("precision") == engine.context.run.precision:  # another one has a scale of its own
        engine.loss_scale.value, engine.loss_scale.good_steps = facts.loss_scale, facts.good_steps
    if engine.context.own is not None:
        engine.context.own.take_state(facts.run.get("own", {}), engine.optimizers[0])
    return facts.step


def _tell_rounded(engine: ResumableEngine, say: Callable[[str], None]) -> None:
    """Tell how many blocks of 8-bit moments another layout cuts otherwise. Collective where a run has such moments."""
    context = engine.context
    if context.run.optimizer != eight_bits.NAME or context.own is not None:
        return
    counts = torch.tensor(getattr(engine, "rounded", (0, 0)), device=context.device)
    if context.mesh.world is not None:
        dist.all_reduce(counts, group=context.mesh.world)
    rounded, blocks = counts.tolist()
    if rounded:
        say(
            f"{rounded:,} of {blocks:,} blocks of 8-bit optimizer states hold other numbers than in the checkpoint, "
            "and were rounded once more: it was saved under a layout that cuts them elsewhere"
        )


def resume(engine: ResumableEngine, folder: str | Path, *, say: Callable[[str], None]) -> int:
    """Continue from the newest checkpoint of a run that can be read. Collective.

    say: is told of each damaged one that is passed over (on every rank).
    Returns: the steps done; 0 where there is no checkpoint yet.
    Raises: DataError when there are checkpoints and none can be read; NewerFormatError where a newer version wrote one,
    which is not damaged; ConfigError when they belong to other work.
    """
    run_folder = Path(folder)
    world = engine.context.mesh.world
    found, name = _together(world, lambda rank, ranks: (checkpoints(run_folder), pointer(run_folder)))
    if found and found[0].name != name:
        say(f"{run_folder / LATEST} {f'says {name!r}' if name else 'is missing'}: taking {found[0].name}")
    for i, path in enumerate(found):
        try:
            return load(engine, path, say=say)
        except NewerFormatError:
            raise
        except DataError as error:
            older = f"taking {found[i + 1].name}" if i + 1 < len(found) else "there is none before it"
            say(f"{error}; {older}")
    if found:
        raise DataError(f"none of the {len(found)} checkpoints in {run_folder} can be read: use another folder")
    return 0


def opened(path: Path, *, rank: int = 0, ranks: int = 1) -> tuple[Path, Facts, Shapes]:
    """Find and verify a checkpoint, each rank its share of the files; return what is in it."""
    if not path.is_dir():
        what = written_by_another(path) if path.exists() else ""
        found = f"is {what}, and no folder of a checkpoint" if what else "is not a folder"
        raise DataError(f"{path} {found}: give a checkpoint such as RUN/step-200, or the folder of a run")
    folder = path if is_checkpoint(path) else latest(path)
    if folder is None:
        what = written_by_another(path)
        found = f"is {what}, and has no checkpoint of paralab" if what else "has no checkpoint"
        raise DataError(f"{path} {found}: give one such as RUN/step-200, or the folder of a run")
    check_format(folder)
    verify(folder, rank=rank, ranks=ranks)
    return folder, read_facts(folder), storage.shapes(folder)


def _together(world: dist.ProcessGroup | None, function: Callable[[int, int], Any]) -> Any:
    """Call function(rank, ranks) on every rank; return what rank 0 got, or raise on all what one raised."""
    if world is None:
        return function(0, 1)
    rank, ranks = dist.get_rank(world), dist.get_world_size(world)
    answer, error = None, None
    try:
        answer = function(rank, ranks)
    except DataError as raised:
        error = raised
    errors: list[DataError | None] = [None] * ranks
    dist.all_gather_object(errors, error, group=world)
    for error in filter(None, errors):
        raise error
    answers = [answer]
    dist.broadcast_object_list(answers, group=world, group_src=0)
    return answers[0]
