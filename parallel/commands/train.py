"""Train a model, with checkpoints, evaluation on held-out data and early stopping.

    paralab train --preset alice --strategy zero2 --nproc 2 --out runs/alice

A run is a folder: its configuration, a log of steps for each rank, held-out losses, checkpoints, and one row of results
for each time that it was started. It can be stopped at any moment, also by a signal, and continued with --resume, under
any layout.
"""

import contextlib
import shlex
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.errors import ConfigError, did_you_mean
from paralab.layout import strategies as named
from paralab.models import folder_of
from paralab.options import heading
from paralab.options.arguments import not_text
from paralab.options.files import load
from paralab.options.flags import read as read_config
from paralab.options.option import flag_of
from paralab.options.settings import Origin
from paralab.training import epochs
from paralab.training.checks import check, check_resume
from paralab.training.options import IN_FOLDER, PRESETS, TrainConfig, config_file, rows_file

if TYPE_CHECKING:  # they import torch: `--help` and the first line do not wait for it
    from paralab.planning.work import Work
    from paralab.processes.rank import Rank

_DIVISION = ("strategy", "layout", "nproc")
Origins = Mapping[str, Origin]  # of the options that have no default, by name


def main(argv: list[str]) -> int:
    """Train. Returns: 0 when it was trained to the end, 128 + the signal when one stopped it."""
    began = Moment.now()
    typed, origins = _read(argv)
    with Phases(began, shown=heading.is_first_process()) as phases:
        phases.begin(_heading(typed))
        return _train(argv, typed, origins, began, phases)


def _train(argv: list[str], typed: TrainConfig, origins: Origins, began: Moment, phases: Phases) -> int:
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank
    from paralab.running import task

    rank = Rank.from_env()
    config = _adopt(_divide(typed, origins, rank), shown=rank.is_main)
    work = resolve(config)
    check_resume(config, rank)  # before the folder is made, where it is missing
    with _locked(work, rank):
        phases.begin("reading the data")
        work = epochs.with_steps(work, steps_given=steps_given(origins))
        check(work)
        task.announce(work.layout.world_size, phases)
        return _launch(work, config, argv, rank, began)


def _locked(work: "Work", rank: "Rank") -> AbstractContextManager[Any]:
    """Lock the folder of the run; where a launcher has started this process, rank 0 does so once the ranks have met."""
    from paralab.training.lock import FolderLock

    return FolderLock(Path(work.run.out or "")) if rank.launcher == "python" else contextlib.nullcontext()


def _launch(work: "Work", config: TrainConfig, argv: list[str], rank: "Rank", began: Moment) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from paralab.records.requested import Requested
    from paralab.running import task

    if rank.elastic and rank.is_main and rank.world_size > work.layout.world_size:
        print(_standing_by(work, rank), flush=True)
    requested = Requested.of(config, rank, command=f"paralab train {shlex.join(argv)}".strip(), started=began)
    try:
        outcome = task.start(
            "paralab.training.loop:train",
            work.run,
            requested,
            nproc=work.layout.world_size,
            config=config,
            failure_row=task.FailureRow(rows_file(work.run.out or ""), work, requested),
        )
    except SignalException as stopped:  # the ranks have had the signal too, and have saved
        return 128 + int(stopped.sigval)
    return outcome.exit_status if outcome is not None else 0  # None: this process stood by


def read(argv: list[str], rank: "Rank") -> TrainConfig:
    """Read what is requested, and divide it over the processes that are there."""
    return _divide(*_read(argv), rank)


def planned(argv: list[str], rank: "Rank") -> tuple[TrainConfig, TrainConfig, Origins]:
    """Return what is requested, the same as it will be trained by these processes, and where each value came from.

    The sizes of weights that a run starts from count as requested. Starts nothing and prints nothing.
    """
    typed, origins = _read(argv)
    divided = _divide(typed, origins, rank)
    adopted = _adopt(divided, shown=False)
    taken = {name: value for name, value in vars(adopted).items() if value != getattr(divided, name)}
    return (
        replace(typed, **taken),
        adopted,
        {**origins, **dict.fromkeys(taken, Origin("weights", typed.init_from or ""))},
    )


def steps_given(origins: Origins) -> bool:
    """Return whether a number of steps was typed, or stands in a file that was."""
    return "steps" in origins and origins["steps"].kind in ("flag", "file")


def _heading(config: TrainConfig) -> str:
    """Return what will be trained, on what and where, as far as it is known before anything is loaded."""
    long = f"{config.steps} steps" if config.epochs is None else f"epochs: {config.epochs}"
    how = heading.joined(heading.division_of(config), long)
    again = ", continuing" if config.resume else ""
    data = config.data or "its default data"
    return f"training {heading.model_of(config)} on {data}: {how}, in {config.out}{again}"


def _read(argv: list[str]) -> tuple[TrainConfig, Origins]:
    """Read the flags, over a file, over what the run in the folder was started with if it goes on, over a preset.

    Returns: the configuration, and where each value that is no default came from.
    """
    words = _with_resume_value(argv)
    typed, origins = read_config(words, config=TrainConfig, prog="paralab train", description=__doc__)
    given = {name: getattr(typed, name) for name in origins}
    below, origin = _without_length(_preset(typed.preset), given), Origin("preset", typed.preset or "")
    config = TrainConfig.from_dict(below | given)
    folder = config.out or f"runs/{folder_of(config.model)}" + (f"-{config.size}" if config.size else "")
    if config.resume == IN_FOLDER and (before := _started_with(folder)):
        source, values = before
        below, origin = _without_length(_without_division(values, given), given), Origin("run", folder)
        config = TrainConfig.from_dict(below | given, source=source)
    config = replace(config, out=folder, engine="torch" if config.engine == "auto" else config.engine)
    _check_can_be_kept(config)
    return config, {**dict.fromkeys(below, origin), **origins}


def _started_with(folder: str) -> tuple[str, dict[str, Any]] | None:
    """Return the file that says what the run in a folder was started with, and what it says; None where none does.

    A checkpoint says so as well, where the configuration was not copied with it.
    """
    file = config_file(folder)
    if file.exists():
        return str(file), load(file)
    from paralab import checkpoint

    newest = checkpoint.latest(folder)
    if newest is None:
        return None
    values = checkpoint.read_facts(newest).run
    return str(newest), {name: value for name, value in values.items() if value is not None}


def _check_can_be_kept(config: TrainConfig) -> None:
    """Raise ConfigError for what the configuration in the folder of the run, which is UTF-8, could not hold."""
    for declared in fields(config):
        value = getattr(config, declared.name)
        if isinstance(value, str) and (problem := not_text(value)):
            raise ConfigError(f"{flag_of(declared)} {problem}")


def _divide(config: TrainConfig, origins: Origins, rank: "Rank") -> TrainConfig:
    if rank.elastic:
        return _adapt(config, rank)
    given = {name for name, origin in origins.items() if origin.kind in ("flag", "file")}
    return config if {"layout", "nproc"} & given else _fit(config, rank, strategy_given="strategy" in given)


def _begins(config: TrainConfig) -> bool:
    """Return whether a run starts at step 0, with the weights it is told to start from."""
    from paralab import checkpoint

    return config.resume is None or (config.resume == IN_FOLDER and checkpoint.latest(config.out or "") is None)


def _adopt(config: TrainConfig, *, shown: bool) -> TrainConfig:
    """Take over the sizes of the weights that a run starts from, if there are any."""
    from paralab.weights import start_from

    source = config.init_from
    if source is None and shown and _begins(config) and (note := start_from.unread(config)):
        print(note, flush=True)
    if source is None or not (_begins(config) or Path(source).exists()):
        return config
    config, note = start_from.adopt(config, source, trust=config.trust)
    if note and shown:
        print(note, flush=True)
    return config


def _without_division(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop how a run was divided where something else is requested now."""
    dropped: set[str] = set()
    if set(_DIVISION) & set(given):
        dropped = {"layout", "nproc"}
        if "strategy" in given or "layout" in given or values.get("strategy") == "single":
            dropped.add("strategy")
    if given.get("engine") == "torch":  # a DeepSpeed file means DeepSpeed
        dropped.add("ds_config")
    return {name: value for name, value in values.items() if name not in dropped}


def _without_length(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop how long a run was to be, in steps or in epochs, where something else is requested now."""
    dropped = {"steps", "epochs"} if given.get("steps") or given.get("epochs") else set()
    return {name: value for name, value in values.items() if name not in dropped}


def _fit(config: TrainConfig, rank: "Rank", *, strategy_given: bool) -> TrainConfig:
    """Take the number of processes from the launcher; without one, one per GPU, or a single one on a CPU.

    A run that goes on may have another number of them than before: then it keeps its strategy where that is possible.
    """
    import torch

    alone = rank.launcher == "python"
    if alone and (strategy_given or config.layout is not None):
        return config
    here = max(1, torch.cuda.device_count()) if alone else rank.world_size
    if config.layout is not None and config.layout.world_size == here:
        return config
    keeps = strategy_given or (here > 1 and config.strategy != "single")
    return replace(config, strategy=config.strategy if keeps else None, layout=None, nproc=here)


def _adapt(config: TrainConfig, rank: "Rank") -> TrainConfig:
    """Divide over the processes that are there now: the data axis grows and shrinks, what is inside of it stays.

    The global batch stays as well. Processes that it does not divide by stand by.
    """
    if config.engine != "torch":
        raise ConfigError(
            f"--engine {config.engine} on nodes that join and leave: it needs a fixed number, use --engine torch"
        )
    layout = config.layout
    if layout is None:
        name = config.strategy or "ddp"
        if not named.runs_alone(name):
            raise ConfigError(
                f"--strategy {name} on nodes that join and leave: its data axis is not known, give a whole layout such"
                " as --layout dp3.tp2, or one of --strategy ddp, zero1, zero2, zero3"
            )
        dp = max(2, rank.world_size)
        layout = named.layout_of(name, dp).but(dp=dp)
    layout = layout.on(rank.world_size, parts_of=config.global_batch_size, accumulation=config.accumulation)
    return replace(config, strategy=None, layout=layout, nproc=None)


def _standing_by(work: "Work", rank: "Rank") -> str:
    used, batch = work.layout.world_size, work.division.global_batch_size
    return (
        f"{rank.world_size} processes, of which {work.layout} uses {used} and {rank.world_size - used} wait(s):"
        f" a global batch of {batch} cannot be divided further"
    )


def _with_resume_value(argv: list[str]) -> list[str]:
    """Give a bare --resume its value."""
    words = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        words += [word, IN_FOLDER] if word == "--resume" and following.startswith("--") else [word]
    return words


def _preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"--preset {name} is unknown{did_you_mean(name, PRESETS)}: use one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])
