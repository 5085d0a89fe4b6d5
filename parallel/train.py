"""Train a model for real: `paralab train --preset alice --out runs/alice`.

A run is a folder: the configuration as it was realised, a log of steps for each rank, the held-out losses, the
checkpoints, and one row for each time it was started. It can be stopped at any moment, by a signal as well, and
continued with `--resume` under any layout.
"""

import contextlib
import os
import shlex
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel.console.clock import Moment
from parallel.console.phases import Phases
from parallel.errors import ConfigError, RankError, did_you_mean
from parallel.layout import strategies as named
from parallel.options import heading
from parallel.options.config import RunConfig, make_parser, option
from parallel.options.config import resolve as read_config
from parallel.options.files import load
from parallel.training import sinks

if TYPE_CHECKING:  # they import torch: `--help` and the first line do not wait for it
    from parallel.plan.resolve import Work
    from parallel.processes.cluster import Rank

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "alice": {
        "model": "gpt2",
        "size": "nano",
        "data": "alice",
        "steps": 300,
        "global_batch_size": 16,
        "learning_rate": 2e-3,
        "lr_warmup_steps": 30,
        "eval_every": 25,
        "early_stop": 3,
        "save_every": 100,
    },
    "gpt2-124m": {  # add --data NAME, a Hugging Face text set
        "model": "gpt2",
        "size": "124m",
        "precision": "bf16",
        "steps": 20_000,
        "global_batch_size": 480,
        "accumulation": 5,
        "learning_rate": 6e-4,
        "lr_warmup_steps": 700,
        "eval_every": 500,
        "eval_samples": 1000,
        "save_every": 1000,
    },
    "mnist": {
        "model": "resnet",
        "size": "20",
        "data": "mnist",
        "steps": 1000,
        "global_batch_size": 64,
        "learning_rate": 4e-3,
        "weight_decay": 0.05,
        "lr_warmup_steps": 30,
        "min_lr_ratio": 0.01,
        "eval_every": 100,
        "save_every": 100,
    },
    "points": {
        "model": "diffusion",
        "size": "points",
        "data": "two_moons",
        "steps": 2000,
        "global_batch_size": 512,
        "learning_rate": 2e-3,
        "weight_decay": 0.0,
        "lr_warmup_steps": 100,
        "min_lr_ratio": 0.01,
        "log_every": 100,
        "eval_every": 500,
        "save_every": 1000,
    },
    "dit-mnist": {
        "model": "diffusion",
        "size": "dit-mnist",
        "data": "mnist",
        "steps": 5000,
        "global_batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "lr_warmup_steps": 200,
        "min_lr_ratio": 0.01,
        "eval_every": 500,
        "eval_samples": 500,
        "save_every": 500,
    },
}
_DIVISION = ("strategy", "layout", "nproc")
IN_FOLDER = "in the folder"  # what a bare --resume stands for
SET_ASIDE = "set-aside"  # in the folder of logs: steps of an earlier start that were taken again


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A training run."""

    preset: str | None = option(None, "values for a known task; other options go over them", group="work")
    steps: int = option(1000, "optimizer steps, warm-up not counted", group="steps", at_least=1)
    warmup: int = option(0, "further steps at the start, marked in the log as not measured", group="steps", at_least=0)
    out: str | None = option(None, "folder of the run (default: runs/MODEL-SIZE)", group="steps", metavar="DIR")
    resume: str | None = option(
        None, "go on from this checkpoint; without PATH from the newest in --out", group="steps", metavar="[PATH]"
    )
    init_from: str | None = option(
        None,
        "start with the weights of a Hugging Face GPT-2, whose sizes the model takes, of paralab export, of a "
        "checkpoint, or of nanoGPT's ckpt.pt",
        group="steps",
        metavar="DIR",
    )
    trust: bool = option(
        False,
        "read the weights of --init-from even where that can run any program with your rights (ckpt.pt), or where "
        "their folder brings Python of its own, which is not run",
        group="steps",
    )
    save_every: int = option(200, "steps between checkpoints", group="steps", at_least=1)
    keep_last: int = option(3, "checkpoints kept, besides the best one", group="steps", at_least=1)
    log_every: int = option(10, "steps between lines of metrics", group="steps", at_least=1)
    eval_every: int = option(100, "steps between evaluations on held-out data", group="steps", at_least=1)
    eval_samples: int | None = option(None, "held-out samples used, the first ones", group="steps", at_least=1)
    early_stop: int | None = option(
        None, "end after so many evaluations in a row without a better loss", group="steps", at_least=1
    )
    log_to: list[str] | None = option(
        None,
        "send metrics there as well: tensorboard, trackio, or both",
        group="steps",
        choices=tuple(sinks.SINKS),
        metavar="NAME,NAME",
    )
    profile_step: int | None = option(None, "write a torch.profiler trace of this step", group="steps", at_least=0)


def main(argv: list[str]) -> int:
    """Train. Returns: 0 when it was trained to the end, 128 + the signal when one stopped it."""
    began = Moment.now()
    typed, given = _read(argv)
    with Phases(began, shown=heading.is_first_process()) as phases:
        phases.begin(_heading(typed))
        return _train(argv, typed, given, began, phases)


def _train(argv: list[str], typed: TrainConfig, given: Mapping[str, Any], began: Moment, phases: Phases) -> int:
    from parallel.plan.resolve import resolve
    from parallel.processes.cluster import Rank

    rank = Rank.from_env()
    config = _divide(typed, given, rank)
    if config.init_from is not None and (_begins(config) or Path(config.init_from).exists()):
        config = _adopt(config, config.init_from, shown=rank.is_main)
    work = resolve(config)
    check_resume(config, rank)  # before the folder is made, where it is missing
    with _locked(work, rank):
        phases.begin("reading the data")
        check(work)
        if work.layout.world_size > 1:
            processes = f"{work.layout.world_size} processes"
            phases.begin(f"starting {processes}" if rank.launcher == "python" else f"waiting for all {processes}")
        phases.end()  # the processes say what follows
        return _launch(work, config, argv, rank, began)


def _locked(work: "Work", rank: "Rank") -> AbstractContextManager[Any]:
    """Lock the folder of the run; where a launcher has started this process, rank 0 does so once the ranks have met."""
    from parallel.training.lock import FolderLock

    return FolderLock(Path(work.run.out or "")) if rank.launcher == "python" else contextlib.nullcontext()


def _launch(work: "Work", config: TrainConfig, argv: list[str], rank: "Rank", began: Moment) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from parallel.case import Asked, failed, record_failure
    from parallel.processes.launch import launch
    from parallel.records.row import append

    if rank.elastic and rank.is_main and rank.world_size > work.layout.world_size:
        print(_standing_by(work, rank), flush=True)
    asked = Asked(
        strategy=config.strategy,
        layout=str(config.layout) if config.layout else None,
        engine=config.engine,
        nproc=config.nproc,
        precision=config.precision,
        command=f"paralab train {shlex.join(argv)}".strip(),
        launcher=rank.launcher,
        started=began,
    )
    rows = rows_file(work.run.out or "")
    try:
        outcome = launch(
            "parallel.training.loop:train",
            work.run,
            asked,
            nproc=work.layout.world_size,
            config=config,
            on_failure=lambda failure: append(rows, failed(work, asked, rank, failure)),
        )
    except SignalException as stopped:  # the ranks have had the signal too, and have saved
        return 128 + int(stopped.sigval)
    except RankError as error:
        record_failure(rows, work, asked, rank, error)
        raise
    return outcome.exit_status if outcome is not None else 0  # None: this process stood by


def read(argv: list[str], rank: "Rank") -> TrainConfig:
    """Read what is asked for, and divide it over the processes that are there."""
    config, given = _read(argv)
    return _divide(config, given, rank)


def _heading(config: TrainConfig) -> str:
    """Return what will be trained, on what and where, as far as it is known before anything is loaded."""
    how = heading.joined(heading.division_of(config), f"{config.steps} steps")
    again = ", going on" if config.resume else ""
    data = config.data or "its default data"
    return f"training {heading.model_of(config)} on {data}: {how}, in {config.out}{again}"


def _read(argv: list[str]) -> tuple[TrainConfig, Mapping[str, Any]]:
    """Read the flags, over a file, over what the run in the folder was started with if it goes on, over a preset.

    Returns: the configuration, and what of it was given now.
    """
    words = _with_resume_value(argv)
    preset = read_config(words, config=TrainConfig, prog="paralab train", description=_description()).preset
    given = {name: value for name, value in vars(_parser().parse_args(words)).items() if value is not None}
    given.pop("local_rank", None)
    file = given.pop("config", None)
    given = (load(file) if file else {}) | given
    config = TrainConfig.from_dict(_preset(preset) | given, source=file or "")
    folder = config.out or f"runs/{config.model}" + (f"-{config.size}" if config.size else "")
    started_with = config_file(folder)
    if config.resume == IN_FOLDER and started_with.exists():
        config = TrainConfig.from_dict(_without_division(load(started_with), given) | given, source=str(started_with))
    return replace(config, out=folder, engine="torch" if config.engine == "auto" else config.engine), given


def _divide(config: TrainConfig, given: Mapping[str, Any], rank: "Rank") -> TrainConfig:
    if rank.elastic:
        return _adapt(config, rank)
    return config if {"layout", "nproc"} & set(given) else _fit(config, rank, strategy_given="strategy" in given)


def _begins(config: TrainConfig) -> bool:
    """Return whether a run starts at step 0, with the weights it is told to start from."""
    from parallel import checkpoint

    return config.resume is None or (config.resume == IN_FOLDER and checkpoint.latest(config.out or "") is None)


def _adopt(config: TrainConfig, source: str, *, shown: bool) -> TrainConfig:
    """Take over the sizes of the weights that a run starts from."""
    from parallel.weights import start_from

    config, note = start_from.adopt(config, source, trust=config.trust)
    if note and shown:
        print(note, flush=True)
    return config


def _without_division(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Drop how a run was divided where something else is asked for now."""
    dropped: set[str] = set()
    if set(_DIVISION) & set(given):
        dropped = {"layout", "nproc"}
        if "strategy" in given or "layout" in given or values.get("strategy") == "single":
            dropped.add("strategy")
    if given.get("engine") == "torch":  # a DeepSpeed file means DeepSpeed
        dropped.add("ds_config")
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
            f"--engine {config.engine} on nodes that come and go: it takes all of them, use --engine torch"
        )
    layout = config.layout
    if layout is None:
        name = config.strategy or "ddp"
        if not named.runs_alone(name):
            raise ConfigError(
                f"--strategy {name} on nodes that come and go: its data axis is not known, give a whole layout such"
                " as --layout dp3.tp2, or one of --strategy ddp, zero1, zero2, zero3"
            )
        dp = max(2, rank.world_size)
        layout = replace(named.layout_of(name, dp), dp=dp)
    layout = layout.on(rank.world_size, parts_of=config.global_batch_size, accumulation=config.accumulation)
    return replace(config, strategy=None, layout=layout, nproc=None)


def _standing_by(work: "Work", rank: "Rank") -> str:
    used, batch = work.layout.world_size, work.division.global_batch_size
    return (
        f"{rank.world_size} processes, of which {work.layout} uses {used} and {rank.world_size - used} stand(s) by:"
        f" a global batch of {batch} divides no further"
    )


def check(work: "Work") -> None:
    """Refuse what is known to fail before processes are started."""
    from parallel.plan import fit

    run = work.run
    assert isinstance(run, TrainConfig) and run.out is not None
    if run.engine != "torch":
        _check_engine(work)
    sinks.check(run.log_to or ())
    _check_checkpoints(run)
    _check_outputs(Path(run.out), goes_on=run.resume is not None)
    fit.check(work, force=run.force)
    work.show_data("train", "validation")
    from parallel import checkpoint

    if run.resume is not None:
        checkpoint.check_same_work(run.out if run.resume == IN_FOLDER else run.resume, work)


def check_resume(run: TrainConfig, rank: "Rank") -> None:
    """Refuse to go on where there is no checkpoint."""
    from parallel import checkpoint

    if run.resume not in (None, IN_FOLDER):
        _check_resumable(Path(run.resume or ""))
    # `paralab node` starts the same command again and again: its first start finds nothing
    elif run.resume == IN_FOLDER and rank.launch is None and not checkpoint.latest(run.out or ""):
        raise ConfigError(
            f"--resume: {_without_checkpoint(Path(run.out or ''))}: give --out what it was trained in, or leave "
            "--resume out to start at step 0"
        )


def _check_checkpoints(run: TrainConfig) -> None:
    """Refuse a folder that has checkpoints where none is asked for, or newer ones, which would come to be replaced."""
    from parallel import checkpoint

    there = checkpoint.checkpoints(Path(run.out or ""))
    for path in there:
        checkpoint.check_format(path)
    if there and run.resume is None:
        raise ConfigError(f"{run.out} has {there[0].name} already: add --resume to go on, or give another --out")


def _check_resumable(path: Path) -> None:
    """Refuse a --resume PATH that is no checkpoint, and no folder of a run that has one."""
    from parallel import checkpoint

    folder = path if path.name.startswith("step-") else checkpoint.latest(path)
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"--resume {path}: {_without_checkpoint(path)}: give one such as RUN/step-200, or the folder of a run"
        )
    checkpoint.check_format(folder)


def _without_checkpoint(path: Path) -> str:
    """Say that there is no checkpoint at a path, and what beside it has one and may be meant."""
    from parallel import checkpoint

    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    others = [
        each.name
        for each in beside
        if each.is_dir() and each != path and (each.name.startswith("step-") or checkpoint.latest(each))
    ]
    if path.name.startswith("step-") and not path.exists() and others:
        return f"there is no {path}, {path.parent} has {', '.join(sorted(others, key=_by_number))}"
    meant = did_you_mean(path.name, others)
    if not meant and len(others) == 1:
        meant = f" (did you mean {others[0]}?)"
    what = "does not exist" if not path.exists() else "has no checkpoint" if path.is_dir() else "is not a folder"
    return f"{path} {what}{meant.replace('mean ', f'mean {path.parent}/') if path.parent != Path() else meant}"


def _by_number(name: str) -> tuple[int, str]:
    return len(name), name


def _check_outputs(folder: Path, *, goes_on: bool) -> None:
    """Refuse what could not be written to, or gone on with, after the work is done."""
    from parallel.records.row import check_appendable, read_log

    rows, log = rows_file(folder), log_file(folder, 0)
    check_appendable(rows, advice=f"move it away to begin a new one: mv {rows} {rows}.before")
    if log.parent.exists() and not log.parent.is_dir():
        raise ConfigError(f"{log.parent} is a file, and the logs of the ranks go there: move it away")
    for file in (log, folder / "validation.jsonl", folder / "progress.json", config_file(folder)):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise ConfigError(f"{file} cannot be written: move it away, or give another --out")
    if goes_on and log.exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a line that was not finished: it is set aside
            read_log(log)


def _check_engine(work: "Work") -> None:
    """Refuse an engine whose state has no way into a checkpoint."""
    run, pp = work.run, work.layout.pp
    if run.engine != "deepspeed" or pp > 1:
        what = "DeepSpeed's pipelines" if pp > 1 else "Accelerate"
        raise ConfigError(
            f"paralab train with --engine {run.engine}, layout {work.layout}: the states of {what} cannot be saved in "
            "its checkpoints, use --engine torch, or --engine deepspeed with --strategy ddp, zero1, zero2 or zero3"
        )
    if run.ds_config is None:
        return
    from parallel.engines import deepspeed_config

    zero = deepspeed_config.read(run.ds_config).get("zero_optimization", {})
    if unreadable := deepspeed_config.unreadable(zero):
        raise ConfigError(
            f"{unreadable} of zero_optimization in {run.ds_config}: optimizer states kept so cannot be saved in the "
            "checkpoints of paralab train, remove it, or use --engine torch"
        )


def _with_resume_value(argv: list[str]) -> list[str]:
    """Give a bare --resume its value."""
    words = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        words += [word, IN_FOLDER] if word == "--resume" and following.startswith("--") else [word]
    return words


def _parser() -> Any:
    return make_parser(TrainConfig, prog="paralab train", description=_description())


def _description() -> str:
    return f"{(__doc__ or '').split(': `')[0]}. Presets: {', '.join(PRESETS)}."


def _preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"--preset {name} is unknown{did_you_mean(name, PRESETS)}: use one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def rows_file(folder: str | os.PathLike) -> Path:
    return Path(folder) / "runs.csv"


def log_file(folder: str | os.PathLike, rank: int) -> Path:
    return Path(folder) / "log" / f"rank{rank}.jsonl"


def config_file(folder: str | os.PathLike) -> Path:
    return Path(folder) / "config.toml"
