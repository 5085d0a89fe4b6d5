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

import time
from collections.abc import Iterator, Sequence
from statistics import median

from paralab.benchmarks.report.metrics import Metric, metric_within
from paralab.benchmarks.report.work import WORK
from paralab.benchmarks.run import percent_of
from paralab.benchmarks.sweep import variations
from paralab.benchmarks.sweep.cases import Case, base_case, cases_of, models_of
from paralab.benchmarks.sweep.options import SweepConfig, check, most_repeats
from paralab.benchmarks.sweep.order import in_turn
from paralab.benchmarks.sweep.progress import progress
from paralab.benchmarks.sweep.runner import Runner, is_good
from paralab.models import label_of
from paralab.options import heading
from paralab.options.flags import resolve as read_config
from paralab.records.proven import parity_words
from paralab.records.row import RunRecord


def main(argv: list[str]) -> int:
    """Run a sweep. Returns: 0, or 1 when a case failed.

    Raises: UsageError when no case can run.
    """
    config = read_config(argv, config=SweepConfig, prog="paralab bench", description=__doc__)
    check(config)
    heading.show(_heading(config))
    cases = cases_of(config)
    _show_data(cases)
    if config.until_decided is not None:
        from paralab.benchmarks.sweep import partners  # it needs torch

        partners.check(cases, config.until_decided)
    with progress(len(cases) * config.repeats, "bench") as bar:
        runner = Runner(config, cases, bar)
        rows = [runner.run(case) for case in in_turn(cases, 0, runner.group)]
        if variations.BATCH in (config.vary or ()):
            found = variations.batches(
                base_case(config), lambda named: runner.run_new(Case(*named)), time_limit_s=config.time_limit_s
            )
            fitting = [Case(*named) for named in found]
            bar.extend(len(fitting) * (config.repeats - 1))
            cases += fitting
        for repeat in range(1, config.repeats):
            rows += [runner.run(case, repeat) for case in in_turn(cases, repeat, runner.group)]
        metric = metric_within(percent_of(config.until_decided), to_loss=config.until_loss is not None)
        if metric is not None:
            rows += until_decided(config, cases, runner, metric)
    runner.say_what_runs(None)
    out = runner.out
    print(_table(cases, runner))
    if metric is not None:
        from paralab.benchmarks.report import deciding
        from paralab.benchmarks.report.formats import text

        print(f"\n{text(deciding.outcome(runner.all_rows, metric), metric)}", end="")
    print("".join(f"\n{line}" for line in runner.notes()), end="")
    print(
        f"\nrows in {out}\n\nNext:\n  which is faster, and how sure that is:\n    paralab compare {out}{_by(config)}"
        f"\n  see it as tables and charts:\n    paralab report {out}"
    )
    return 0 if all(map(is_good, rows)) else 1


def until_decided(config: SweepConfig, cases: Sequence[Case], runner: "Runner", metric: Metric) -> Iterator[RunRecord]:
    """Run further repeats of the cases that are not decided, until all are or the budget is spent; yield the rows."""
    from paralab.benchmarks.report import deciding

    for repeat in range(config.repeats, most_repeats(config)):
        open_ids = deciding.undecided(runner.all_rows, metric)
        going = [case for case in cases if any(row.run_id in open_ids for row in runner.rows[case.name])]
        spent = config.max_time_s is not None and time.time() - runner.began_s > config.max_time_s
        if not going or spent:
            return
        runner.bar.extend(len(going))
        yield from (runner.run(case, repeat) for case in in_turn(going, repeat, runner.group))


def _heading(config: SweepConfig) -> str:
    """Return what will be swept, as far as it is known before strategies are looked at."""
    models = ", ".join(" ".join(filter(None, (label_of(name), size))) for name, size in models_of(config))
    ways = map(str, config.vary or config.layouts or config.strategies or ["every strategy"])
    counts = config.nprocs or [config.nproc or (config.layout.world_size if config.layout else 0)]
    processes = f"{' or '.join(map(str, counts))} processes" if any(counts) else ""
    most = f" to {most_repeats(config)}" if config.until_decided else ""
    return f"a sweep of {models}: {heading.joined(*ways, processes, f'{config.repeats}{most} repeats')}"


def _show_data(cases: Sequence[Case]) -> None:
    """Say what was found in the data set of each model, before anything is measured. Raises: DataError."""
    from paralab.planning.resolve import resolve

    for config in {(case.config.model, case.config.size): case.config for case in cases}.values():
        resolve(config).show_data("train")


def _by(config: SweepConfig) -> str:
    """Return the options of `paralab compare` where the cases of a sweep differ first in the work that they do."""
    if not config.vary:
        return ""
    (first,) = config.vary[:1]
    column = "global_batch_size" if first == variations.BATCH else next(iter(variations.CHANGES[first][0]))
    return f" --by {column} --force" if column in {known.name for known in WORK} else ""


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
        good = [r.samples_per_s for r in mine if is_good(r) and r.samples_per_s]
        rate = median(good) if good else None
        first = first or rate
        shown = f"{rate:>12,.1f}{rate / first:>10.2f}" if rate and first else f"{'':>22}"
        loss = next((f"{r.loss_last:>10.4f}" for r in mine if r.loss_last is not None), " " * 10)
        cells = f"{case.name:<{width}}{len(mine):>5}{len(mine) - len(good):>8}{shown}{loss}"
        lines.append(f"{cells}  {parity_words(mine)}")
    return "\n".join(lines)
