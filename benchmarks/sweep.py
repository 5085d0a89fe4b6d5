"""Sweep strategies, models, sizes and process counts: `paralab bench`.

    paralab bench --strategies ddp,zero1,zero3 --nprocs 2,4 --repeats 6
    paralab bench --strategies ddp,zero3 --engines torch,deepspeed,accelerate --nprocs 2
    paralab bench --layouts pp4/1f1b/mb4,pp4/1f1b/mb8 --global-batch-sizes 16,32
    paralab bench --levers batch,precision,compile --strategy single

Each case runs in its own processes, repeats interleaved (A B C A B C), so that a machine that drifts drifts for all.
Parity is proved in the first repeat. A case that fails, hangs or runs out of memory leaves a row and the sweep goes
on. The same command again continues where it was interrupted.
"""

import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.run import CaseConfig
from parallel.config import ENGINES, STRATEGIES, STRATEGY_ALIASES, option
from parallel.config import resolve as read_config
from parallel.errors import ConfigError, UsageError
from parallel.layout import Layout
from parallel.measure.oom_killer import OomKiller
from parallel.measure.record import RunRecord, append, read

_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = "runs/bench.csv"

# What each lever tries, against the case without it. Values are flags.
LEVERS: dict[str, tuple[dict[str, Any], ...]] = {
    "batch": tuple({"global_batch_size": 2**n} for n in range(3, 12)),
    "workers": ({"loader_workers": 1}, {"loader_workers": 2}),
    "pinned": ({"pin_memory": True, "non_blocking": True},),
    "casting": ({"cast_on_device": True, "loader_workers": 1},),
    "precision": ({"precision": "bf16"},),
    "channels-last": ({"channels_last": True},),
    "compile": ({"compile": "default"}, {"compile": "reduce-overhead"}, {"compile": "max-autotune"}),
    "checkpointing": ({"checkpointing": "full"}, {"checkpointing": "2"}),
    "accumulation": ({"accumulation": 2}, {"accumulation": 4}),
}


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CaseConfig):
    """What to sweep; every other option is shared by all cases. Lists are joined by commas."""

    strategies: list[str] | None = option(
        None,
        "strategies to compare; all when left out",
        group="sweep",
        choices=STRATEGIES,
        aliases=STRATEGY_ALIASES,
        metavar="A,B,...",
    )
    layouts: list[Layout] | None = option(None, "layouts, in place of strategies", group="sweep", metavar="A,B,...")
    engines: list[str] | None = option(
        None, "engines to run each of them on", group="sweep", choices=ENGINES, metavar="A,B,..."
    )
    models: list[str] | None = option(None, "models, with sizes as gpt2:nano", group="sweep", metavar="A,B,...")
    nprocs: list[int] | None = option(None, "process counts", group="sweep", at_least=1, metavar="N,M,...")
    global_batch_sizes: list[int] | None = option(None, "samples a step", group="sweep", at_least=1, metavar="N,M,...")
    levers: list[str] | None = option(
        None,
        f"change one thing at a time: {', '.join(LEVERS)}",
        group="sweep",
        choices=tuple(LEVERS),
        metavar="A,B,...",
    )
    repeats: int = option(6, "runs of each case; a verdict needs at least 4", group="sweep", at_least=1)
    time_limit_s: int = option(600, "for one run, after which it counts as hung", group="sweep", at_least=1)


@dataclass(frozen=True)
class Case:
    """One cell of the sweep: a name for people, and the flags that make it."""

    name: str
    flags: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Run a sweep. Returns: 0, or 1 when a case failed."""
    config = read_config(argv, config=SweepConfig, prog="paralab bench", description=__doc__)
    check(config)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the case that runs, as Ctrl-C does
    cases = list(lever_cases(config) if config.levers else strategy_cases(config))
    if not cases:
        raise UsageError("no case of this sweep can run: see the lines above, and change --strategies or --nprocs")
    out = config.out or DEFAULT_OUT
    group = config.group or f"bench-{hashlib.sha256(repr(cases).encode()).hexdigest()[:8]}"
    runs = [(repeat, case) for repeat in range(config.repeats) for case in cases]
    done = {record.command for record in read(out)} if Path(out).exists() else set()
    with progress(len(runs), "bench") as advance:
        for repeat, case in runs:
            command = _command(case, repeat, group, out)
            text = f"paralab run {shlex.join(command)}"
            if text not in done:
                _run_case(command, text, case, out, config, group, repeat)
            advance(f"repeat {repeat + 1} of {config.repeats}: {case.name}")
    records = [record for record in read(out) if record.group == group]
    print(_table(cases, records, group))
    print(f"\nrows in {out}; compare: paralab compare {out} --by strategy; read: paralab report {out}")
    return 0 if all(record.status == "ok" for record in records) else 1


# option -> what it takes the place of
_LISTS = ("strategies", "layouts", "engines", "models", "nprocs", "global_batch_sizes")
_REPLACES = {
    "engines": ("engine",),
    "global_batch_sizes": ("global_batch_size",),
    "nprocs": ("nproc",),
    "models": ("model", "size"),
    "strategies": ("strategy",),
    "layouts": ("strategy", "layout", "strategies", "nproc", "nprocs"),
    "levers": _LISTS,
    "repeats": ("repeat",),
}


def check(config: SweepConfig) -> None:
    """Refuse options that would change nothing. Raises: ConfigError."""
    given = {f.name for f in fields(config) if getattr(config, f.name) != f.default} | {"repeats"}
    for single, several in (("strategy", "strategies"), ("layout", "layouts")):
        if single in given and "levers" not in given:
            raise ConfigError(f"--{single} of paralab bench is for --levers: use --{several}")
    for name, others in _REPLACES.items():
        for other in others:
            if name in given and other in given:
                flag, instead = (word.replace("_", "-") for word in (other, name))
                raise ConfigError(f"--{flag} beside --{instead}, which takes its place: leave one of them out")


def strategy_cases(config: SweepConfig) -> Iterator[Case]:
    """Yield models x batches x process counts x strategies (or layouts) x engines, without what does not fit.

    What does not fit is said. One process has strategy single only, and single one process.
    """
    from parallel.resolve import resolve

    for case in _product(config):
        try:
            resolve(case)
        except UsageError as error:
            print(f"{_name(case)} left out: {error}")
            continue
        yield Case(_name(case), tuple(flags_of(case)))


def _product(config: SweepConfig) -> Iterator[CaseConfig]:
    batches: Sequence[int | None] = config.global_batch_sizes or [config.global_batch_size]
    for model, batch in product(config.models or [_model(config)], batches):
        name, _, size = model.partition(":")
        shared = replace(_shared(config), model=name, size=size or None, global_batch_size=batch)
        for division, engine in product(_divisions(config), config.engines or [config.engine]):
            yield replace(shared, engine=engine, **division)


def _model(config: SweepConfig) -> str:
    return f"{config.model}:{config.size}" if config.size else config.model


def _divisions(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yield the options that divide the work: a layout, or a strategy and a process count."""
    if config.layouts:
        yield from ({"layout": layout, "strategy": None, "nproc": None} for layout in config.layouts)
        return
    from parallel.resolve import machine_processes

    counts = config.nprocs or [config.nproc or machine_processes()]
    for nproc, strategy in product(counts, config.strategies or STRATEGIES):
        if (strategy == "single") == (nproc == 1):
            yield {"strategy": strategy, "nproc": nproc}


def _name(case: CaseConfig) -> str:
    division = str(case.layout) if case.layout else f"{case.strategy} x{case.nproc}"
    batch = f"batch {case.global_batch_size}" if case.global_batch_size else ""
    engine = case.engine if case.engine != "auto" else ""
    return " ".join(word for word in (case.model, case.size, division, batch, engine) if word)


def lever_cases(config: SweepConfig) -> Iterator[Case]:
    """Yield the case itself, then the case with each lever."""
    from parallel.resolve import resolve

    base = _shared(config)
    if base.layout is None:
        base = replace(base, strategy=base.strategy or "single")
    yield Case("as it is", tuple(flags_of(base)))
    for lever in config.levers or ():
        for change in LEVERS[lever]:
            name = ", ".join(f"{key} {value}" for key, value in change.items())
            try:
                case = replace(base, **change)
                resolve(case)
            except UsageError as error:
                print(f"{name} left out: {error}")
                continue
            yield Case(name, tuple(flags_of(case)))


def flags_of(config: CaseConfig) -> list[str]:
    """Return the flags that make a config from the defaults."""
    words: list[str] = []
    for declared in fields(CaseConfig):
        value = getattr(config, declared.name)
        if value == declared.default:
            continue
        flag = "--" + declared.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            values = value if isinstance(value, tuple) else ("none" if value is None else value,)
            words += [flag, ",".join(map(str, values))]
    return words


def _shared(config: SweepConfig) -> CaseConfig:
    """Return what all cases share, without what the sweep decides for each."""
    values = {declared.name: getattr(config, declared.name) for declared in fields(CaseConfig)}
    return CaseConfig(**values | {"out": None, "group": None, "repeat": None})


def _command(case: Case, repeat: int, group: str, out: str) -> list[str]:
    proved = ["--no-parity"] if repeat else []
    return [*case.flags, "--group", group, "--repeat", str(repeat), "--out", out, *proved]


def _run_case(
    command: list[str], text: str, case: Case, out: str, config: SweepConfig, group: str, repeat: int
) -> None:
    """Run one case in its own session, so that it can be ended with all its processes."""
    started, oom_killer = time.time(), OomKiller()
    words = [sys.executable, str(_ROOT / "benchmarks" / "run.py"), *command]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    status, reason = "crash", ""
    try:
        _, stderr = process.communicate(timeout=config.time_limit_s)
        reason = next((line for line in reversed(stderr.splitlines()) if line.startswith("paralab:")), stderr[-200:])
    except subprocess.TimeoutExpired:
        status, reason = "hang", f"no result within --time-limit-s {config.time_limit_s}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if oom_killer.has_struck and status == "crash":
        status = "oom"
    if Path(out).exists() and any(record.command == text for record in read(out)):
        return  # the run left its row, of success or of failure
    append(out, _failure_row(text, case, config, group, repeat, started, status, reason))


def _failure_row(
    text: str, case: Case, config: SweepConfig, group: str, repeat: int, started: float, status: str, reason: str
) -> RunRecord:
    flags = dict(zip(case.flags[::2], case.flags[1::2], strict=False))
    return RunRecord(
        run_id=uuid4().hex[:12],
        group=group,
        repeat=repeat,
        started_at=datetime.fromtimestamp(started, tz=timezone.utc).isoformat(timespec="milliseconds"),
        command=text,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        strategy_requested=flags.get("--strategy", config.strategy or "single"),
        model=flags.get("--model", config.model),
        wall_s=time.time() - started,
    )


def _table(cases: list[Case], records: list[RunRecord], group: str) -> str:
    """Return the median of each case beside the first one, and the failures."""
    lines = [f"{group}", f"{'case':<36}{'runs':>5}{'failed':>8}{'samples/s':>12}{'of first':>10}{'loss':>10}"]
    first = None
    for case in cases:
        flags = shlex.join(case.flags)
        mine = [r for r in records if (r.command or "").removeprefix("paralab run ").startswith(flags + " --group")]
        good = [r.samples_per_s for r in mine if r.status == "ok" and r.samples_per_s]
        rate = median(good) if good else None
        first = first or rate
        shown = f"{rate:>12,.1f}{rate / first:>10.2f}" if rate and first else f"{'':>22}"
        loss = next((f"{r.loss_last:>10.4f}" for r in mine if r.loss_last is not None), "")
        lines.append(f"{case.name:<36}{len(mine):>5}{len(mine) - len(good):>8}{shown}{loss}")
    return "\n".join(lines)


class progress:
    """A bar on a terminal, a line a run elsewhere; the function it yields is called after each run."""

    def __init__(self, total: int, name: str) -> None:
        self.total, self.count, self.name = total, 0, name
        self.bar: Any = None  # rich is imported when there is a terminal to draw on

    def __enter__(self) -> Callable[[str], None]:
        if sys.stderr.isatty():
            from rich.progress import Progress

            self.bar = Progress()
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total)
        return self._advance

    def _advance(self, text: str) -> None:
        self.count += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)
        else:
            print(f"[{self.count}/{self.total}] {text}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
