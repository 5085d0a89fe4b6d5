"""What `paralab compare` prints: lines for a terminal, Markdown, CSV or JSON of the same comparisons."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby

from paralab.benchmarks.report.caveats import grouped
from paralab.benchmarks.report.choices import FORMATS
from paralab.benchmarks.report.comparison import DIFFERENT, Comparison
from paralab.benchmarks.report.evidence import LEVEL
from paralab.benchmarks.report.metrics import METRICS, Metric
from paralab.benchmarks.report.outcome import Outcome
from paralab.benchmarks.report.work import amount
from paralab.console.lines import markdown_row, paragraph, width
from paralab.records.cells import harmless, one_line


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
        many = comparison.more_repeats
        how_much = f": about {many} more repeat{'s' * (many > 1)} would decide"
    return f"{said}{how_much}{' (FORCED: not the same work)' if comparison.forced else ''}"


def exact_text(comparison: Comparison) -> list[str]:
    """Return a line for each exact column that changed, or one that none did."""
    if comparison.changes or not comparison.exact_columns:
        return [f"exact: {change}" for change in comparison.changes]
    return [f"exact: {comparison.exact_columns} columns compared, none changed"]


def _row(comparison: Comparison) -> tuple[str, ...]:
    base = f"{comparison.base}: {_median(comparison.base_median, comparison.base_runs, comparison)}"
    other = f"{comparison.other}: {_median(comparison.other_median, comparison.other_runs, comparison)}"
    p = "–" if comparison.p is None else _p(comparison)
    return base, other, ratio_text(comparison), p, verdict_text(comparison)


def _median(middle: float | None, runs: int, comparison: Comparison) -> str:
    return f"{amount(middle, comparison.metric)} (n={runs})"


def _p(comparison: Comparison) -> str:
    return f"{comparison.p:.3g}" + (f" ({comparison.pairs} pairs)" if comparison.pairs else "")


_HEADS = ("base", "other", "other/base", "p", "verdict")


def _judged_by(metric: Metric) -> str:
    return f"{metric.column}, {metric.better} is better" if metric.better else metric.column


def text(outcome: Outcome, metric: Metric) -> str:
    """Return comparisons as lines that fit a terminal: under each work a baseline, and what is compared with it."""
    says = f"{_judged_by(metric)}: medians of runs, and the ratio to the baseline with its 95% interval"
    lines = [_wrapped(said) for said in (*_first(outcome), *([says] if outcome.comparisons else []))]
    place = None
    for (name, _), beside in groupby(outcome.comparisons, key=lambda c: (c.work, c.base)):
        lines += ["", *([_wrapped(name)] if name != place else []), *_beside(list(beside))]
        place = name
    rest = [f"not comparable: {refusal}" for refusal in outcome.refusals]
    rest += [f"without a partner: {name}" for name in outcome.alone]
    rest += _closing(outcome)
    return "\n".join([*lines, *([""] if lines and rest else []), *map(_wrapped, rest), ""])


def _beside(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a baseline and what is compared with it, a line each where they fit, then what changed and the notes."""
    rows = [_of_base(comparisons[0]), *map(_of_other, comparisons)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    fits = 2 + sum(widths) + 2 * (len(widths) - 1) <= width()
    for row in rows:
        if fits:
            yield f"  {'  '.join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True))}".rstrip()
        else:
            name, verdict, *figures = row
            yield _wrapped(f"{name}: {verdict}", indent="  ")
            yield _wrapped("  ".join(filter(None, figures)), indent="      ")
    changed = [f"{comparison.other}, {change}" for comparison in comparisons for change in exact_text(comparison)]
    yield from (_wrapped(said, indent="    ") for said in (*grouped(comparisons), *changed))


def _of_base(comparison: Comparison) -> tuple[str, ...]:
    middle = _median(comparison.base_median, comparison.base_runs, comparison)
    return one_line(comparison.base), "baseline", middle, "", ""


def _of_other(comparison: Comparison) -> tuple[str, ...]:
    middle = _median(comparison.other_median, comparison.other_runs, comparison)
    p = "" if comparison.p is None else f"p = {_p(comparison)}"
    return one_line(comparison.other), one_line(verdict_text(comparison)), middle, ratio_text(comparison), p


def _wrapped(said: str, indent: str = "") -> str:
    return paragraph(one_line(said), indent=indent, after=f"{indent}  ")


def _markdown(outcome: Outcome, metric: Metric) -> str:
    lines = [f"**{_plain(said)}**\n" for said in _first(outcome)]
    lines += [f"{_plain(_judged_by(metric))}; medians of runs, 95% intervals", ""]
    if outcome.comparisons:
        lines += [markdown_row(("work", *_HEADS)), markdown_row(["---"] * (1 + len(_HEADS)))]
        lines += [markdown_row(map(_plain, (c.work, *_row(c)))) for c in outcome.comparisons]
    notes = [f"{c.base} / {c.other}: {said}" for c in outcome.comparisons for said in exact_text(c)]
    notes += [note for _, piece in groupby(outcome.comparisons, key=lambda c: c.work) for note in grouped(list(piece))]
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


WRITERS: Mapping[str, Callable[[Outcome, Metric], str]] = dict(
    zip(FORMATS, (text, _markdown, _csv, _json), strict=True)
)
