"""Compare result files: print which variant is better, or that there is not enough evidence.

    paralab compare runs.csv
    paralab compare before.csv after.csv --fail-over 5
    paralab compare runs.csv --by engine

One file: every way of doing a piece of work is compared with the baseline that differs from it in as little as
possible. Two files are compared case by case, and with --by the values of one column. Each run counts once, with its
median step time or another --metric. The exit status makes it a gate for continuous integration.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.benchmarks.report.choices import FORMATS, NOT_COMPARABLE
from paralab.benchmarks.report.metrics import MOST_ASKED, Metric, metric_of, usual
from paralab.benchmarks.report.sources import Source, load
from paralab.benchmarks.report.warned import told
from paralab.errors import ParalabError, UsageError
from paralab.options.arguments import Parser
from paralab.options.numbers import meant, number_of
from paralab.records.cells import one_line

if TYPE_CHECKING:
    from paralab.benchmarks.report.outcome import Outcome

_EPILOG = """exit status:
  0  compared; with --fail-over: no variant is worse by more than PERCENT
  2  a variant failed parity, so it does not compute what one process computes;
     with --fail-over also: a variant is worse by more than PERCENT, or fails
     more often than its baseline; with --fail-on-change also: an exact column
     changed
  3  not comparable: different work, a baseline that failed parity, a file that
     is missing, an unknown option
  4  with --fail-over: not enough evidence, so the gate does not pass: too few
     good runs, no usable number, runs that were not interleaved on a machine
     that may have drifted, medians that differ by more than PERCENT without
     evidence, more failures than the baseline that may be chance, a case that
     only the baseline has; with --fail-on-change: that as well, or no exact
     column that both sides have"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        with told("compare"):
            options = _parser().parse_args(argv)
            outcome, metric = _look(options)
    except ParalabError as error:
        print(f"paralab compare: {one_line(str(error))}", file=sys.stderr)
        return NOT_COMPARABLE
    from paralab.benchmarks.report.formats import WRITERS

    found = WRITERS[options.format](outcome, metric)
    if options.explain:
        from paralab.benchmarks.report import explain

        found = explain.WITH[options.format](found, explain.of_families(outcome.families))
    print(found, end="")
    return outcome.exit_status(options.fail_over, fail_on_change=options.fail_on_change)


def _look(options: argparse.Namespace) -> "tuple[Outcome, Metric]":
    from paralab.benchmarks.report.comparing import compare_column, compare_files

    sources = load(options.files)
    rows = [row for source in sources for row in source.records]
    metric = metric_of(options.metric) if options.metric else usual(rows)
    if metric.better is None and options.fail_over is not None:
        neither = f"--metric {metric.column}, in which neither lower nor higher is better"
        raise UsageError(f"--fail-over with {neither}: name another metric")
    if options.explain:
        from paralab.benchmarks.report.explain import WITH

        if options.format not in WITH:
            raise UsageError(f"--explain with --format {options.format}: use one of {', '.join(WITH)}")
    if options.equivalent_within is not None:
        metric = replace(metric, within=options.equivalent_within / 100)
    for source in sources:
        if not source.records:
            raise UsageError(f"{source.path} holds no runs that count: give a file with at least one of its own")
    if options.by is not None:
        files = {id(row): source.label for source in sources for row in source.records}
        found = compare_column(rows, options.by, metric, baseline=options.baseline, force=options.force, files=files)
        return found, metric
    if options.baseline is not None:
        advice = "name that column with --by; without it the first file is the baseline"
        raise UsageError(f"--baseline {options.baseline} is the value of a column: {advice}")
    if len(sources) == 1:
        return _ways(sources[0], metric), metric
    if len(sources) > 2:
        count = f"{len(sources)} files given"
        raise UsageError(f"{count}: give one or two, or name the column that differs, such as --by strategy")
    base, other = sources
    names = (base.label, other.label)
    return compare_files(base.records, other.records, metric, names=names, force=options.force), metric


def _ways(source: Source, metric: Metric) -> "Outcome":
    """Compare what one file holds. Raises: UsageError where nothing was done in two ways."""
    from paralab.benchmarks.report.comparing import compare_ways

    found = compare_ways(source.records, metric)
    if not found.comparisons:
        needed = "two strategies, layouts or engines at one piece of work"
        raise UsageError(f"{source.path} does not hold {needed}: give a second file, or name a --by COLUMN")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="paralab compare", description=__doc__, epilog=_EPILOG)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv", help="Result files, the baseline first")
    parser.add_argument("--by", metavar="COLUMN", help="Compare the values of this column, such as strategy or engine")
    parser.add_argument("--baseline", metavar="VALUE", help="With --by: the value that the others are compared with")
    parser.add_argument(
        "--metric",
        metavar="COLUMN",
        help=f"Column to judge by, any that holds numbers: {', '.join(MOST_ASKED)} ... "
        "(default: step_time_p50_s; time_to_loss_s where all runs were to reach a loss)",
    )
    parser.add_argument("--force", action="store_true", help="Also compare runs that did different work, and mark them")
    parser.add_argument(
        "--equivalent-within",
        type=_margin,
        metavar="PERCENT",
        help="Also look for evidence that two differ by less than this, such as 2%%; what is undecided then says about "
        "how many more repeats would decide",
    )
    parser.add_argument(
        "--fail-over",
        type=_percent,
        metavar="PERCENT",
        help="Act as a gate: pass only if no variant is worse by more than PERCENT",
    )
    parser.add_argument(
        "--fail-on-change",
        action="store_true",
        help="Act as a gate: pass only if no exact column changed (bytes sent, operations, tokens, memory of the "
        "state, graph breaks); one run of each is enough",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="Say where each difference in step time comes from: computing, data or communication along an axis",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="Format of the output (default: text)")
    return parser


def _margin(text: str) -> float:
    number = _percent(text)
    if not 0 < number < 50:
        raise argparse.ArgumentTypeError(f"{text} is no margin: use a percentage above 0 and below 50, such as 2%")
    return number


def _percent(text: str) -> float:
    number = number_of(text.removesuffix("%"))
    if number is None or not 0 <= number < math.inf:
        hint = meant(text.removesuffix("%"))
        raise argparse.ArgumentTypeError(f"{text} is no limit{hint}: use a percentage from 0, such as 5")
    return number


if __name__ == "__main__":
    sys.exit(main())
