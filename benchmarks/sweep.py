"""Measure every combination of strategies, models, sizes and process counts, several times each.

    paralab bench --strategies ddp,zero1,zero3 --nprocs 2,4 --repeats 6
    paralab bench --strategies ddp,zero3 --engines torch,deepspeed --nprocs 2
    paralab bench --layouts pp4/1f1b/mb4,pp4/1f1b/mb8 --global-batch-sizes 16,32
    paralab bench --vary batch,precision,compile --strategy single
    paralab bench --layouts dp2,dp2/zero1 --until-decided 2%

Each case runs in its own processes. Repeats are interleaved in an order that is drawn for each (A B C, C A B ...), so
that a machine whose speed drifts affects all cases alike, and are compared in pairs. Parity is checked in the first
repeat. A case that fails, hangs or runs out of memory leaves a row, and the sweep continues. The same command, typed
again, continues a sweep that was interrupted.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, TypeVar, get_args
from uuid import uuid4

from paralab.benchmarks import variations
from paralab.benchmarks.report import deciding, sequential
from paralab.benchmarks.report.compare import text
from paralab.benchmarks.report.metrics import Metric
from paralab.benchmarks.report.work import WORK
from paralab.benchmarks.run import PERCENT, CaseConfig, percent_of
from paralab.console.phases import is_phase
from paralab.errors import ConfigError, UsageError
from paralab.layout import Layout
from paralab.layout.strategies import ALIASES, STRATEGIES
from paralab.models import SPECS, file_columns, label_of
from paralab.models.files import without_size
from paralab.options import heading
from paralab.options.choices import EngineChoice
from paralab.options.config import changed
from paralab.options.flags import flags_of
from paralab.options.flags import resolve as read_config
from paralab.options.option import option
from paralab.processes.oom_killer import OomKiller
from paralab.records.environment import repository_state
from paralab.records.proven import parity_words
from paralab.records.reading import read
from paralab.records.row import RunRecord
from paralab.records.sweep_progress import SweepProgress
from paralab.records.writing import append

_ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = "runs/bench.csv"
MOST_REPEATS = 40  # with --until-decided
SWEEP = "sweep"  # the title of the group of options
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CaseConfig):
    """What to sweep; every other option is shared by all cases. Lists are joined by commas."""

    out: str | None = changed("out", None, unset=DEFAULT_OUT)
    strategies: list[str] | None = option(
        None,
        "Strategies to compare",
        group=SWEEP,
        choices=tuple(STRATEGIES),
        aliases=ALIASES,
        metavar="A,B,...",
        unset="every strategy that fits",
    )
    layouts: list[Layout] | None = option(
        None, "Layouts to compare, in place of strategies", group=SWEEP, metavar="A,B,...", unset="none"
    )
    engines: list[str] | None = option(
        None,
        "Engines to run each strategy on",
        group=SWEEP,
        choices=get_args(EngineChoice),
        metavar="A,B,...",
        unset="that of --engine",
    )
    models: list[str] | None = option(
        None,
        "Models to compare, with a size as in gpt2:nano or FILE.py:NAME:tiny",
        group=SWEEP,
        metavar="A,B,...",
        unset="that of --model and --size",
    )
    nprocs: list[int] | None = option(
        None,
        "Numbers of processes to compare",
        group=SWEEP,
        at_least=1,
        metavar="N,M,...",
        unset="that of --nproc",
    )
    global_batch_sizes: list[int] | None = option(
        None,
        "Global batch sizes to compare, in samples per optimizer step",
        group=SWEEP,
        at_least=1,
        metavar="N,M,...",
        unset="that of --global-batch-size",
    )
    vary: list[str] | None = option(
        None,
        f"Options to vary one at a time, each compared with the case as it is: {', '.join(variations.NAMES)}",
        group=SWEEP,
        choices=variations.NAMES,
        metavar="A,B,...",
        unset="none",
    )
    repeats: int = option(
        6,
        "Number of runs of each case, interleaved; a verdict needs at least 4, and 6 in pairs",
        group=SWEEP,
        at_least=1,
    )
    until_decided: str | None = option(
        None,
        "Go on beyond --repeats, interleaved, until each comparison is decided: faster, slower, or equivalent within "
        "this margin, such as 2%; a case that is decided is not run any more",
        group=SWEEP,
        pattern=PERCENT,
        metavar="PERCENT",
        unset="stop after --repeats",
    )
    max_repeats: int | None = option(
        None,
        "With --until-decided: the most runs of each case",
        group=SWEEP,
        at_least=1,
        at_most=sequential.LAST,
        unset=f"{MOST_REPEATS}",
    )
    max_time_s: int | None = option(
        None,
        "With --until-decided: seconds after which no further repeat is begun",
        group=SWEEP,
        at_least=1,
        unset="no limit",
    )
    time_limit_s: int = option(
        600, "Seconds that one run may take, after which it is ended and counts as hung", group=SWEEP, at_least=1
    )


@dataclass(frozen=True)
class Case:
    """One cell of the sweep: a name for people, and the run that it is."""

    name: str
    config: CaseConfig

    def repeat(self, number: int) -> "Case":
        """Return the case as it is run in one repeat: parity is checked in the first alone."""
        return self if number == 0 else replace(self, config=replace(self.config, parity=False))

    @cached_property
    def command(self) -> str:
        """What its rows say in the column `command`."""
        from paralab.planning.resolve import resolve

        return resolve(self.config).command


def main(argv: list[str]) -> int:
    """Run a sweep. Returns: 0, or 1 when a case failed.

    Raises: UsageError when no case can run.
    """
    config = read_config(argv, config=SweepConfig, prog="paralab bench", description=__doc__)
    check(config)
    heading.show(_heading(config))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the case that runs, as Ctrl-C does
    cases = cases_of(config)
    _show_data(cases)
    with progress(len(cases) * config.repeats, "bench") as bar:
        runner = Runner(config, cases, bar)
        rows = [runner.run(case) for case in in_turn(cases, 0, runner.group)]
        if variations.BATCH in (config.vary or ()):
            found = variations.batches(
                _base(config), lambda named: runner.run_new(Case(*named)), time_limit_s=config.time_limit_s
            )
            fitting = [Case(*named) for named in found]
            bar.extend(len(fitting) * (config.repeats - 1))
            cases += fitting
        for repeat in range(1, config.repeats):
            rows += [runner.run(case, repeat) for case in in_turn(cases, repeat, runner.group)]
        metric = deciding.metric_within(percent_of(config.until_decided), to_loss=config.until_loss is not None)
        if metric is not None:
            rows += until_decided(config, cases, runner, metric)
    runner.say_what_runs(None)
    out = runner.out
    print(_table(cases, runner))
    if metric is not None:
        print(f"\n{text(deciding.outcome(runner.all_rows, metric), metric)}", end="")
    print("".join(f"\n{line}" for line in runner.notes()), end="")
    print(f"\nrows in {out}; compare: paralab compare {out} {_by(config)}; read: paralab report {out}")
    return 0 if all(map(_is_good, rows)) else 1


def in_turn(cases: Sequence[T], repeat: int, group: str) -> list[T]:
    """Return the cases in the order of a repeat, which is drawn from its number and the name of the sweep.

    The first repeat goes in the order that was typed, so that the first case is the baseline of a sweep that has no
    other. Which of two cases comes first is a fair coin in each later repeat: whatever the machine does, a case that is
    no slower is as likely to be the slower one of a pair as not, and pairs do not depend on each other.
    """
    return random.Random(f"{group} {repeat}").sample(cases, len(cases)) if repeat else list(cases)


def until_decided(config: SweepConfig, cases: Sequence[Case], runner: "Runner", metric: Metric) -> Iterator[RunRecord]:
    """Run further repeats of the cases that are not decided, until all are or the budget is spent; yield the rows."""
    began_s = time.monotonic()
    for repeat in range(config.repeats, most_repeats(config)):
        open_ids = deciding.undecided(runner.all_rows, metric)
        going = [case for case in cases if any(row.run_id in open_ids for row in runner.rows[case.name])]
        spent = config.max_time_s is not None and time.monotonic() - began_s > config.max_time_s
        if not going or spent:
            return
        runner.bar.extend(len(going))
        yield from (runner.run(case, repeat) for case in in_turn(going, repeat, runner.group))


def _heading(config: SweepConfig) -> str:
    """Return what will be swept, as far as it is known before strategies are looked at."""
    models = ", ".join(" ".join(filter(None, (label_of(name), size))) for name, size in _models(config))
    ways = map(str, config.vary or config.layouts or config.strategies or ["every strategy"])
    counts = config.nprocs or [config.nproc or (config.layout.world_size if config.layout else 0)]
    processes = f"{' or '.join(map(str, counts))} processes" if any(counts) else ""
    return f"a sweep of {models}: {heading.joined(*ways, processes, f'{config.repeats} repeats')}"


# option -> what it takes the place of
_LISTS = ("strategies", "layouts", "engines", "models", "nprocs", "global_batch_sizes")
_REPLACES = {
    "engines": ("engine",),
    "global_batch_sizes": ("global_batch_size",),
    "nprocs": ("nproc",),
    "models": ("model", "size"),
    "strategies": ("strategy",),
    "layouts": ("strategy", "layout", "strategies", "nproc", "nprocs"),
    "vary": _LISTS,
    "repeats": ("repeat",),
}


def check(config: SweepConfig) -> None:
    """Refuse options that would change nothing. Raises: ConfigError."""
    given = {f.name for f in fields(config) if getattr(config, f.name) != f.default} | {"repeats"}
    for single, several in (("strategy", "strategies"), ("layout", "layouts")):
        if single in given and "vary" not in given:
            raise ConfigError(f"--{single} of paralab bench is for --vary: use --{several}")
    _check_until_decided(config)
    for name, others in _REPLACES.items():
        for other in others:
            if name in given and other in given:
                flag, instead = (word.replace("_", "-") for word in (other, name))
                raise ConfigError(f"--{flag} beside --{instead}, which takes its place: leave one of them out")


def _check_until_decided(config: SweepConfig) -> None:
    percent = percent_of(config.until_decided)
    if percent is not None and not 0 < percent < 50:
        raise ConfigError(f"--until-decided {config.until_decided} is no margin: use a percentage such as 2%")
    for name in ("max_repeats", "max_time_s"):
        if percent is None and getattr(config, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is for --until-decided: leave it out, or give a margin as well")
    if percent is not None and most_repeats(config) < config.repeats:
        raise ConfigError(f"--max-repeats {most_repeats(config)} is less than --repeats {config.repeats}: use no less")


def most_repeats(config: SweepConfig) -> int:
    """Return how often a case is run at most where repeats go on until there is a verdict."""
    return config.max_repeats or MOST_REPEATS


def cases_of(config: SweepConfig) -> list[Case]:
    """Return the cases of a sweep, without the batches that `--vary batch` finds. Raises: UsageError without any."""
    named = variations.cases(_base(config), config.vary) if config.vary else strategies(config)
    cases = [Case(*pair) for pair in named]
    if not cases:
        raise UsageError("no case of this sweep can run: see the lines above, and change --strategies or --nprocs")
    return cases


def strategies(config: SweepConfig) -> Iterator[variations.Named]:
    """Yield models x batches x process counts x strategies (or layouts) x engines, without what does not fit.

    What does not fit is said. One process has strategy single only, where that is one of them, and
    single one process, also where other counts are requested.
    """
    from paralab.planning.resolve import resolve

    for case in _product(config):
        try:
            resolve(case)
        except UsageError as error:
            print(f"{_name(case)} left out: {error}")
            continue
        yield _name(case), case


def _show_data(cases: Sequence[Case]) -> None:
    """Say what was found in the data set of each model, before anything is measured. Raises: DataError."""
    from paralab.planning.resolve import resolve

    for config in {(case.config.model, case.config.size): case.config for case in cases}.values():
        resolve(config).show_data("train")


def _product(config: SweepConfig) -> Iterator[CaseConfig]:
    batches: Sequence[int | None] = config.global_batch_sizes or [config.global_batch_size]
    for (model, size), batch in product(_models(config), batches):
        shared = replace(_shared(config), model=model, size=size, global_batch_size=batch)
        for division, engine in product(_divisions(config), config.engines or [config.engine]):
            yield replace(shared, engine=engine, **division)


def _models(config: SweepConfig) -> list[tuple[str, str | None]]:
    """Return the models to compare, each with its size where that is given."""
    return [without_size(model) for model in config.models] if config.models else [(config.model, config.size)]


def _divisions(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yield the options that divide the work: a layout, or a strategy and a process count."""
    if config.layouts:
        yield from ({"layout": layout, "strategy": None, "nproc": None} for layout in config.layouts)
        return
    from paralab.planning.resolve import machine_processes

    counts = config.nprocs or [config.nproc or machine_processes()]
    strategies = config.strategies or list(STRATEGIES)
    if config.strategies and "single" in strategies and 1 not in counts:
        yield {"strategy": "single", "nproc": 1}
    for nproc, strategy in product(counts, strategies):
        if (strategy == "single") == (nproc == 1) or (nproc == 1 and "single" not in strategies):
            yield {"strategy": strategy, "nproc": nproc}


def _name(case: CaseConfig) -> str:
    division = str(case.layout) if case.layout else f"{case.strategy} x{case.nproc}"
    batch = f"batch {case.global_batch_size}" if case.global_batch_size else ""
    engine = case.engine if case.engine != "auto" else ""
    return " ".join(word for word in (label_of(case.model), case.size, division, batch, engine) if word)


def _shared(config: SweepConfig) -> CaseConfig:
    """Return what all cases share, without what the sweep decides for each."""
    values = {declared.name: getattr(config, declared.name) for declared in fields(CaseConfig)}
    return CaseConfig(**values | {"out": None, "group": None, "repeat": None})


def _base(config: SweepConfig) -> CaseConfig:
    """Return the case that `--vary` changes: on one process unless another division is requested."""
    shared = _shared(config)
    return shared if shared.layout else replace(shared, strategy=shared.strategy or "single")


def _by(config: SweepConfig) -> str:
    """Return the options of `paralab compare` for what the cases of a sweep differ in first."""
    if not config.vary:
        return "--by strategy"
    (first,) = config.vary[:1]
    column = "global_batch_size" if first == variations.BATCH else next(iter(variations.CHANGES[first][0]))
    return f"--by {column}" + (" --force" if column in {known.name for known in WORK} else "")


class Runner:
    """Runs the cases of one sweep, each in processes of its own.

    A run that has its row is not taken again: that is how a sweep goes on after an interruption. What failed is, since
    its cause may be gone, and so is what other code has run. The rows before stay in the file.
    """

    def __init__(self, config: SweepConfig, cases: list[Case], bar: "progress") -> None:
        self.code = repository_state()
        looks = ["until decided"] if config.until_decided else []
        key = repr(([case.command for case in cases], config.vary, self.code, *looks))
        self.group = config.group or f"bench-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        self.config, self.bar, self.out = config, bar, config.out or DEFAULT_OUT
        self.rows: dict[str, list[RunRecord]] = {}  # of this sweep, by the name of the case
        self.kept, self.again = 0, 0
        self.made: set[str] = set()  # ids of the runs that were taken now
        self.began_s = time.time()

    def run(self, case: Case, repeat: int = 0) -> RunRecord:
        """Return the row of a case, which is there afterwards whatever happened to its run."""
        run = case.repeat(repeat)
        most = most_repeats(self.config) if self.config.until_decided else self.config.repeats
        self.say_what_runs(f"{case.name}, repeat {repeat + 1} of {most}")
        before = self._row(run, repeat)
        again = self._why_again(before) if before is not None else ""
        row = before if before is not None and not again else self._run(run, repeat)
        if row is not before:
            self.made.add(row.run_id)
            note = f" ({again}: run again)" if again else ""
        else:
            note = " (the same run as one above)" if row.run_id in self.made else " (has its row already)"
        self.kept += row is before and row.run_id not in self.made
        self.again += bool(again)
        self.rows.setdefault(case.name, []).append(row)
        self.bar.advance(f"repeat {repeat + 1} of {most}: {case.name}{note}")
        return row

    def say_what_runs(self, name: str | None) -> None:
        """Write down how far the sweep is, for `paralab watch`. name: of what runs now, None at the end."""
        SweepProgress(
            group=self.group,
            done=self.bar.count,
            total=self.bar.total,
            taken=len(self.made),
            now=name,
            began_s=self.began_s,
        ).write(self.out)

    @property
    def all_rows(self) -> list[RunRecord]:
        return [row for rows in self.rows.values() for row in rows]

    def run_new(self, case: Case) -> RunRecord:
        """Return the row of the first run of a case that was not among those of the sweep so far."""
        self.bar.extend(1)
        return self.run(case)

    def notes(self) -> Iterator[str]:
        """Yield what a reader of the table has to know of the rows before."""
        if self.kept:
            yield f"{self.kept} of these runs had their rows in {self.out} already: use another --out to run them again"
        if self.again:
            yield f"{self.again} of these runs were run again; their earlier rows stay in {self.out}"

    def _row(self, case: Case, repeat: int) -> RunRecord | None:
        """Return the last row of this sweep for one repeat of a case."""
        rows = read(self.out) if Path(self.out).exists() else []
        mine = (row for row in reversed(rows) if (row.group, row.repeat) == (self.group, repeat))
        return next((row for row in mine if row.command == case.command), None)

    def _why_again(self, row: RunRecord) -> str:
        """Say why a row that is there does not stand for the run; empty where it does."""
        if row.status != "ok":
            return f"failed before, {row.status}"
        if row.parity is False:
            return "parity failed before"
        return "" if (row.git_commit, row.git_dirty) == self.code else f"was run by commit {(row.git_commit or '')[:7]}"

    def _run(self, case: Case, repeat: int) -> RunRecord:
        """Run one case in its own session, so that it can be ended with all its processes."""
        started_at, began_s = datetime.now(UTC), time.monotonic()
        before, oom_killer = self._row(case, repeat), OomKiller()
        where = ["--group", self.group, "--repeat", str(repeat), "--out", self.out]
        words = [sys.executable, str(_ROOT / "benchmarks" / "run.py"), *flags_of(case.config), *where]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        status, reason = "crash", ""
        try:
            _, stderr = process.communicate(timeout=self.config.time_limit_s)
            lines = [line for line in stderr.splitlines() if not is_phase(line)]
            said = (line for line in reversed(lines) if line.startswith("paralab:"))
            reason = next(said, " ".join(lines)[-200:]) or _end(process.returncode)
        except subprocess.TimeoutExpired:
            status, reason = "hang", f"no result within --time-limit-s {self.config.time_limit_s}"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        row = self._row(case, repeat)
        if row is not None and row != before:  # the run left it, of success or of failure
            return row
        if oom_killer.has_struck and process.returncode == -signal.SIGKILL and status == "crash":
            status, reason = "oom", f"{reason} {oom_killer.BLAME}"
        row = _failure_row(case, self.group, repeat, status, reason, self.code, started_at, time.monotonic() - began_s)
        append(self.out, row)
        return row


def _is_good(row: RunRecord) -> bool:
    """Return whether a run ended well and, where parity was checked, computed what one process computes."""
    return row.status == "ok" and row.parity is not False


def _end(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}, without a message"


def _failure_row(
    case: Case,
    group: str,
    repeat: int,
    status: str,
    reason: str,
    code: tuple[str | None, bool | None],
    started_at: datetime,
    wall_s: float,
) -> RunRecord:
    config = case.config
    return RunRecord(
        run_id=uuid4().hex[:12],
        group=group,
        repeat=repeat,
        started_at=started_at.isoformat(timespec="milliseconds"),
        command=case.command,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        strategy_requested=config.strategy or "ddp",  # what a run is divided by when nothing is requested
        layout_requested=str(config.layout) if config.layout else None,
        model=SPECS[config.model].name,
        **file_columns(config.model),  # type: ignore[arg-type]
        wall_s=wall_s,
        git_commit=code[0],
        git_dirty=code[1],
    )


def _table(cases: list[Case], runner: Runner) -> str:
    """Return the median of each case beside the first one, and the failures."""
    width = 2 + max(len(case.name) for case in cases)
    lines = [
        f"{runner.group}",
        f"{'case':<{width}}{'runs':>5}{'failed':>8}{'samples/s':>12}{'of first':>10}{'loss':>10}  parity",
    ]
    first = None
    for case in cases:
        mine = runner.rows.get(case.name, [])
        good = [r.samples_per_s for r in mine if _is_good(r) and r.samples_per_s]
        rate = median(good) if good else None
        first = first or rate
        shown = f"{rate:>12,.1f}{rate / first:>10.2f}" if rate and first else f"{'':>22}"
        loss = next((f"{r.loss_last:>10.4f}" for r in mine if r.loss_last is not None), " " * 10)
        cells = f"{case.name:<{width}}{len(mine):>5}{len(mine) - len(good):>8}{shown}{loss}"
        lines.append(f"{cells}  {parity_words(mine)}")
    return "\n".join(lines)


class progress:
    """A bar on a terminal, a line a run elsewhere."""

    def __init__(self, total: int, name: str) -> None:
        self.total, self.count, self.name = total, 0, name
        self.bar: Any = None  # rich is imported when there is a terminal to draw on

    def __enter__(self) -> "progress":
        if sys.stderr.isatty():
            from rich.progress import Progress

            self.bar = Progress()
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total)
        return self

    def extend(self, more: int) -> None:
        """Add runs that were not known of."""
        self.total += more
        if self.bar is not None:
            self.bar.update(self.task, total=self.total)

    def advance(self, text: str) -> None:
        """Say that a run has ended."""
        self.count += 1
        if self.bar is not None:
            self.bar.update(self.task, advance=1, description=text)
        else:
            print(f"[{self.count}/{self.total}] {text}", file=sys.stderr, flush=True)

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()
