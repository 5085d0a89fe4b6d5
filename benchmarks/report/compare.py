"""Compare result files: print which variant is better, or that there is not enough evidence.

    paralab compare runs.csv
    paralab compare before.csv after.csv --fail-over 5
    paralab compare runs.csv --by engine

One file: every way of doing a piece of work is compared with the baseline that differs from it in as little as
possible. Two files are compared case by case, and with --by the values of one column. Each run counts once, with its
median step time or another --metric. The exit status makes it a gate for continuous integration.
"""

import argparse
import csv
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from paralab.benchmarks.report import explain
from paralab.benchmarks.report.comparing import compare_column, compare_files, compare_ways
from paralab.benchmarks.report.comparison import DIFFERENT, Comparison
from paralab.benchmarks.report.evidence import LEVEL
from paralab.benchmarks.report.metrics import METRICS, MOST_ASKED, Metric, metric_of
from paralab.benchmarks.report.outcome import NOT_COMPARABLE, Outcome
from paralab.benchmarks.report.sources import Source, load
from paralab.benchmarks.report.work import amount
from paralab.errors import ParalabError, UsageError
from paralab.options.arguments import Parser
from paralab.options.numbers import meant, number_of
from paralab.records.cells import harmless, one_line

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
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            options = _parser().parse_args(argv)
            outcome, metric = _look(options)
    except ParalabError as error:
        print(f"paralab compare: {one_line(str(error))}", file=sys.stderr)
        return NOT_COMPARABLE
    for warning in caught:
        print(f"paralab compare: {one_line(str(warning.message))}", file=sys.stderr)
    found = FORMATS[options.format](outcome, metric)
    if options.explain:
        found = explain.WITH[options.format](found, explain.of_families(outcome.families))
    print(found, end="")
    return outcome.exit_status(options.fail_over, fail_on_change=options.fail_on_change)


def _look(options: argparse.Namespace) -> tuple[Outcome, Metric]:
    sources = load(options.files)
    metric = metric_of(options.metric or _usual_metric(sources))
    if metric.better is None and options.fail_over is not None:
        neither = f"--metric {metric.column}, in which neither lower nor higher is better"
        raise UsageError(f"--fail-over with {neither}: name another metric")
    if options.explain and options.format not in explain.WITH:
        raise UsageError(f"--explain with --format {options.format}: use one of {', '.join(explain.WITH)}")
    if options.equivalent_within is not None:
        metric = replace(metric, within=options.equivalent_within / 100)
    for source in sources:
        if not source.records:
            raise UsageError(f"{source.path} holds no runs that count: give a file with at least one of its own")
    if options.by is not None:
        rows = [row for source in sources for row in source.records]
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


def _ways(source: Source, metric: Metric) -> Outcome:
    """Compare what one file holds. Raises: UsageError where nothing was done in two ways."""
    found = compare_ways(source.records, metric)
    if not found.comparisons:
        needed = "two strategies, layouts or engines at one piece of work"
        raise UsageError(f"{source.path} does not hold {needed}: give a second file, or name a --by COLUMN")
    return found


def _usual_metric(sources: Sequence[Source]) -> str:
    """Return what runs are judged by where nothing is said: time to a loss where all good ones were to reach one."""
    good = [run for source in sources for run in source.records if run.status == "ok"]
    asked = bool(good) and all(run.until_loss is not None for run in good)
    return "time_to_loss_s" if asked else "step_time_p50_s"


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


def ratio_text(comparison: Comparison) -> str:
    """Return the ratio with its interval."""
    if comparison.ratio is None:
        return "–"
    interval = "" if comparison.low is None else f" [{comparison.low:.3f}, {comparison.high:.3f}]"
    return f"{comparison.ratio:.3f}{interval}"


def verdict_text(comparison: Comparison) -> str:
    """Return the verdict, with how much where there is one, and marked where it was forced."""
    change = comparison.change_percent
    how_much = f" {abs(change):.1f}%" if change is not None and comparison.verdict in DIFFERENT else ""
    said = METRICS[comparison.metric].words.get(comparison.verdict, comparison.verdict)
    if comparison.verdict == "equivalent":
        how_much = f" within {comparison.within_percent:g}%"
    if comparison.verdict == "not enough evidence" and comparison.more_repeats is not None:
        how_much = f": about {comparison.more_repeats} more repeats would decide"
    return f"{said}{how_much}{' (FORCED: not the same work)' if comparison.forced else ''}"


def exact_text(comparison: Comparison) -> list[str]:
    """Return a line for each exact column that changed, or one that none did."""
    if comparison.changes or not comparison.exact_columns:
        return [f"exact: {change}" for change in comparison.changes]
    return [f"exact: {comparison.exact_columns} columns compared, none changed"]


def _row(comparison: Comparison) -> tuple[str, ...]:
    variants = (
        f"{name}: {amount(middle, comparison.metric)} (n={runs})"
        for name, middle, runs in (
            (comparison.base, comparison.base_median, comparison.base_runs),
            (comparison.other, comparison.other_median, comparison.other_runs),
        )
    )
    p = "–" if comparison.p is None else f"{comparison.p:.3g}"
    p += f" ({comparison.pairs} pairs)" if comparison.pairs else ""
    return (*variants, ratio_text(comparison), p, verdict_text(comparison))


_HEADS = ("base", "other", "other/base", "p", "verdict")


def _judged_by(metric: Metric) -> str:
    return f"{metric.column}, {metric.better} is better" if metric.better else metric.column


def text(outcome: Outcome, metric: Metric) -> str:
    """Return comparisons as aligned lines for a terminal, each under the work that was done."""
    lines = [f"{_judged_by(metric)}; medians of runs, 95% intervals", ""]
    lines = [*map(one_line, _first(outcome)), *lines]
    rows = [_HEADS, *(tuple(map(one_line, _row(c))) for c in outcome.comparisons)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADS))]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if outcome.comparisons:
        lines.append(aligned[0])
    place = None
    for comparison, line in zip(outcome.comparisons, aligned[1:], strict=True):
        if comparison.work != place:
            lines += ["", one_line(comparison.work)]
            place = comparison.work
        lines += [line, *(f"    {one_line(note)}" for note in (*comparison.notes, *exact_text(comparison)))]
    lines += [f"not comparable: {one_line(str(refusal))}" for refusal in outcome.refusals]
    lines += [f"without a partner: {one_line(name)}" for name in outcome.alone]
    return "\n".join([*lines, *_closing(outcome), ""])


def _markdown(outcome: Outcome, metric: Metric) -> str:
    lines = [f"**{_plain(said)}**\n" for said in _first(outcome)]
    lines += [f"{_plain(_judged_by(metric))}; medians of runs, 95% intervals", ""]
    if outcome.comparisons:
        lines += [_pipes(("work", *_HEADS)), _pipes(["---"] * (1 + len(_HEADS)))]
        lines += [_pipes(map(_plain, (c.work, *_row(c)))) for c in outcome.comparisons]
    notes = [f"{c.base} / {c.other}: {note}" for c in outcome.comparisons for note in (*c.notes, *exact_text(c))]
    notes += [f"not comparable: {refusal}" for refusal in outcome.refusals]
    notes += [f"without a partner: {name}" for name in outcome.alone]
    return "\n".join([*lines, "", *(f"- {_plain(note)}" for note in (*notes, *_closing(outcome))), ""])


def _by_parity(outcome: Outcome) -> dict[str, list[str]]:
    """Return the labels of variants by their parity result in words."""
    found: dict[str, list[str]] = {}
    for c in outcome.comparisons:
        for label, words in ((c.base, c.base_parity_result), (c.other, c.other_parity_result)):
            if label not in found.setdefault(words, []):
                found[words].append(label)
    return found


def _first(outcome: Outcome) -> list[str]:
    """Say before any number which variants do not compute what one process computes."""
    failed = [label for words, labels in _by_parity(outcome).items() if words.startswith("FAILED") for label in labels]
    names = ", ".join(label.removesuffix(" (parity FAILED)") for label in failed)
    said = f"parity FAILED: {names}: does not compute what one process computes, so its speed is not compared"
    return [said] if names else []


def _unproven(outcome: Outcome) -> list[str]:
    """Say which variants were not proved to compute the same, or on a part of the work alone."""
    found = _by_parity(outcome).items()
    left = {words: labels for words, labels in found if words != "passed" and not words.startswith("FAILED")}
    return [
        f"parity {'was not checked' if words == 'not checked' else words}: {', '.join(labels)}"
        for words, labels in left.items()
    ]


def _closing(outcome: Outcome) -> list[str]:
    judged = sum(comparison.p is not None for comparison in outcome.comparisons)
    unsure = "~: no evidence of a difference; for evidence that there is none: --equivalent-within 2%"
    tilde = any(comparison.verdict == "~" for comparison in outcome.comparisons)
    chance = f"{judged} verdicts at the {LEVEL:.0%} level: up to {judged * LEVEL:.1f} would be chance alone"
    return [*([unsure] if tilde else []), *map(one_line, _unproven(outcome)), *([chance] if judged > 10 else [])]


def _pipes(cells: "Sequence[str] | map[str]") -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#!&~$])", r"\\\1", re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text))


def _csv(outcome: Outcome, metric: Metric) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(Comparison)]
    writer.writerow(names)
    for comparison in outcome.comparisons:
        joined = {"notes": "; ".join(comparison.notes), "changes": "; ".join(map(str, comparison.changes))}
        cells = {**vars(comparison), **joined}
        writer.writerow([_csv_cell(cells[name]) for name in names])
    for refusal in outcome.refusals:
        cells = {"base": refusal.base, "other": refusal.other, "metric": metric.column, "verdict": "not comparable"}
        writer.writerow([_csv_cell({**cells, "notes": str(refusal)}.get(name)) for name in names])
    return buffer.getvalue()


def _csv_cell(cell: object) -> str:
    if isinstance(cell, str):
        return harmless(cell) if cell else ""
    return "" if cell is None else str(cell).lower() if isinstance(cell, bool) else repr(cell)


def _json(outcome: Outcome, metric: Metric) -> str:
    refusals = [
        {
            "base": refusal.base,
            "other": refusal.other,
            "differences": {d.column.name: [d.base, d.other] for d in refusal.differences},
            "message": str(refusal),
        }
        for refusal in outcome.refusals
    ]
    found = {
        "parity_failed": _first(outcome),
        "metric": asdict(metric),
        "comparisons": [asdict(c) for c in outcome.comparisons],
        "refusals": refusals,
        "alone": outcome.alone,
    }
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Outcome, Metric], str]] = {
    "text": text,
    "markdown": _markdown,
    "csv": _csv,
    "json": _json,
}

if __name__ == "__main__":
    sys.exit(main())
