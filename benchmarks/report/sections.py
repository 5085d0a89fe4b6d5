"""The sections of a report: verdicts, tables and charts, from the rows of runs and the logs of their ranks."""

import shlex
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from paralab.benchmarks.report import figures, stats, work
from paralab.benchmarks.report.caveats import grouped, listed, parity_failures
from paralab.benchmarks.report.comparison import Comparison
from paralab.benchmarks.report.explain import Explanation, explain
from paralab.benchmarks.report.families import Family, families
from paralab.benchmarks.report.metrics import STEP_TIME, Metric, usual
from paralab.benchmarks.report.sources import Source
from paralab.benchmarks.report.variants import Variant, variants
from paralab.benchmarks.report.work import ENVIRONMENT, HARDWARE, WORK, Column, amount, show, value
from paralab.console.phases import Phases, hidden
from paralab.errors import DataError
from paralab.pages.page import Chart
from paralab.records.log import LogRecord, StepRecord, read_log
from paralab.records.log_files import log_paths
from paralab.records.row import RunRecord


@dataclass
class Way:
    """One way of doing a piece of work, and how it compares with its baseline."""

    variant: Variant
    logs: list[LogRecord]  # of one good run, all ranks
    against_base: Comparison | None = None  # None where it is the baseline of others, or has none
    explanation: Explanation | None = None  # of what it takes more or less than that

    @property
    def good(self) -> list[RunRecord]:
        return self.variant.good

    @property
    def parity(self) -> str:
        return self.variant.parity_words

    @cached_property
    def step_times(self) -> list[float]:
        return self.variant.samples(STEP_TIME)

    def median(self, column: str) -> float | None:
        """Return the median over good runs of a column, or None where no run knows it."""
        known = self.known(column)
        return stats.median(known) if known else None

    def known(self, column: str) -> list[float]:
        """Return the cells of a column, of the good runs that know it."""
        cells = [getattr(run, column) for run in self.good]
        return [float(cell) for cell in cells if cell is not None]

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Where the median step time lies, in seconds; None where there is one run or none."""
        return stats.spread(self.step_times)

    @property
    def spread_name(self) -> str:
        """What its interval is called."""
        return stats.spread_name(self.step_times)


@dataclass
class Piece:
    """One piece of work on one kind of hardware, and all the ways in which it was done. Only these are ranked."""

    name: str
    device: str
    unit: str
    ways: list[Way]
    metric: Metric  # by which its ways are judged
    number: int = 0  # its place in the page, from 1
    verdict: list[str] = field(default_factory=list)  # sentences
    parity_failures: list[str] = field(default_factory=list)  # those of them that say so
    memory_column: str = "process_peak_bytes"
    references: list[Way] = field(default_factory=list)  # one process at the same work
    charts: list[Chart] = field(default_factory=list)
    timelines: list[Chart] = field(default_factory=list)  # of the ways that recorded one, for one step

    @property
    def throughput_column(self) -> str:
        return "tokens_per_s" if self.unit == "tokens" else "samples_per_s"

    @property
    def labels(self) -> list[str]:
        return [way.variant.label for way in self.ways]

    @property
    def memory_name(self) -> str:
        return figures.MEMORY_NAMES[self.memory_column]

    @property
    def ranked(self) -> list[Way]:
        """The ways that have a step time, the fastest first."""
        return sorted((way for way in self.ways if way.step_times), key=lambda way: stats.median(way.step_times))


def pieces(sources: Sequence[Source], phases: Phases | None = None) -> list[Piece]:
    """Return every piece of work: first those done in several ways, and among equals GPUs first.

    phases: shows how far it is.
    """
    phases = phases or hidden()
    origin = {id(record): source for source in sources for record in source.records}
    groups = work.group([record for source in sources for record in source.records], WORK).values()
    phases.begin("reading logs and comparing", total=len(groups))
    found = []
    for records in groups:
        found.append(_piece(records, origin))
        phases.advance()
    found.sort(key=lambda piece: (len(piece.ways) == 1, piece.device != "cuda"))
    for number, piece in enumerate(found, start=1):
        piece.number = number
        piece.references = _references(piece, found)
    phases.begin("drawing charts", total=len(found))
    figures.draw(found, phases)
    return found


def _references(piece: Piece, found: Sequence[Piece]) -> list[Way]:
    """Return the runs of one process that ate the same data as a piece, on whatever hardware."""
    same = [column for column in WORK if column not in HARDWARE and column.name != "precision"]
    mine = work.key(piece.ways[0].variant.runs[0], same)
    singles = [
        way for other in found for way in other.ways if way.good and figures.strategy_of(way.good[0]) == "single"
    ]
    return [way for way in singles if work.key(way.good[0], same) == mine][:1]


def _piece(records: list[RunRecord], origin: dict[int, Source]) -> Piece:
    files = {id(record): origin[id(record)].label for record in records}
    ways = [Way(variant, _logs(variant, origin)) for variant in variants(records, files)]
    first = next((record for record in records if record.status == "ok"), records[0])
    metric = usual(records)
    piece = Piece(work.work_label(first), first.device or "unknown", first.unit or "samples", ways, metric)
    of_variant = {id(way.variant): way for way in ways}
    for family in families([way.variant for way in ways]):
        compared = family.compare(metric, name=piece.name)
        for variant, comparison in zip(family.others, compared, strict=True):
            of_variant[id(variant)].against_base = comparison
            of_variant[id(variant)].explanation = explain(family.base, variant)
        piece.verdict.append(_verdict(family, compared, metric))
    columns = ("gpu_allocated_peak_bytes", "memory_tensors_peak_bytes", "process_peak_bytes")
    known = (column for column in columns if all(way.median(column) is not None for way in piece.ranked))
    piece.memory_column = next(known, "process_peak_bytes")
    piece.parity_failures = _parity(piece)
    piece.verdict = [*piece.parity_failures, *(piece.verdict or [_alone(piece)])]
    return piece


def _logs(variant: Variant, origin: dict[int, Source]) -> list[LogRecord]:
    """Return what the ranks of the last good run wrote; of the last run where none is good. Damaged logs only warn."""
    run = next((run for run in reversed(variant.runs) if run.status == "ok"), variant.runs[-1])
    try:
        return [row for path in log_paths(origin[id(run)].path, run.run_id) for row in _with_rank(path)]
    except DataError as error:
        warnings.warn(str(error), stacklevel=2)
        return []


def _with_rank(path: Path) -> list[LogRecord]:
    """Return a rank's log; steps are the same on all ranks, so those of rank 0 are enough."""
    rows = read_log(path)
    return rows if path.name.endswith("rank0.jsonl") else [row for row in rows if not isinstance(row, StepRecord)]


def _parity(piece: Piece) -> list[str]:
    """Say which ways do not compute what one process computes: their speed counts for nothing."""
    said = [note for way in piece.ways for note in parity_failures(way.variant)]
    return [f"Parity FAILED, so its speed is not compared. {note}." for note in said]


def _alone(piece: Piece) -> str:
    (way,) = piece.ways
    if not way.step_times:
        return "No run came to its end."
    time = amount(stats.median(way.step_times), STEP_TIME.column)
    return f"{way.variant.label}: {time} a step. No other variant ran, so there is nothing to compare it with."


_SAID = {
    "better": "Faster: {}.",
    "worse": "Slower: {}.",
    "~": "No evidence of a difference: {}.",
    "fails more": "Fails more often: {}.",
    "fails less": "Fails less often than the baseline: {}.",
    "failed": "Failed: {}.",
    "not interleaved": "No verdict, as the runs were not made in turns: {}.",
    "insufficient": "No verdict, too few runs: {}.",
    "parity failed": "Not compared, as parity failed: {}.",
    "not reached": "Not compared, as a run of one of the two did not reach the loss: {}.",
    "no data": "No data: {}.",
}


def _verdict(family: Family, compared: Sequence[Comparison], metric: Metric) -> str:
    """Say in words what was found about the variants beside one baseline."""
    base = family.base.samples(metric)
    if not family.base.good and not any(other.good for other in family.others):
        return "No run came to its end."
    of_what = "a step" if metric == STEP_TIME else "to the loss"
    time = f"{amount(stats.median(base), metric.column)} {of_what}" if base else "no good run"
    said = [f"Compared with {family.base.label} ({time}):"]
    by_change = sorted(compared, key=lambda comparison: comparison.change_percent or 0.0)
    for verdict, sentence in _SAID.items():
        if names := [_with_change(comparison) for comparison in by_change if comparison.verdict == verdict]:
            said.append(sentence.format(listed(names)))
    return " ".join(said)


def _with_change(comparison: Comparison) -> str:
    change = comparison.change_percent
    if change is None or comparison.verdict not in ("better", "worse"):
        return comparison.other
    return f"{comparison.other} by {abs(change):.1f}%"


def notes(piece: Piece) -> list[str]:
    """Return the notes on the comparisons of a piece of work."""
    return grouped([way.against_base for way in piece.ways if way.against_base])


def caveats(sources: Sequence[Source], found: Sequence[Piece]) -> list[str]:
    """Return what a reader must know before believing a number."""
    records = [record for source in sources for record in source.records]
    good = [record for record in records if record.status == "ok"]
    on_cpu = sum(record.device == "cpu" for record in records)
    counted = (
        (on_cpu, "runs used CPUs: they show how the strategies compare there, and nothing about GPUs"),
        (len(records) - len(good), "runs failed, and count for no median"),
        (sum(record.steady is False for record in good), "runs never reached a steady step time"),
        (sum(record.throttled is True for record in good), "runs were throttled"),
        (sum(record.git_dirty is True for record in records), "runs used code with uncommitted changes"),
    )
    said = [f"{count:,} of {len(records):,} {text}." for count, text in counted if count]
    said += _unproven([way.parity for piece in found for way in piece.ways])
    compared = [way.against_base for piece in found for way in piece.ways if way.against_base]
    if few := sum(comparison.verdict == "insufficient" for comparison in compared):
        said.append(f"Comparisons with too few runs for a verdict: {few}.")
    if any("not interleaved" in note for comparison in compared for note in comparison.notes):
        said.append("Some ways ran one after the other, not in turns: their intervals allow for a machine that drifts.")
    return said


def _unproven(results: Sequence[str]) -> Iterator[str]:
    """Say how many ways were not proved to compute what one process computes, or on a part of the work alone."""
    count = sum(words == "not checked" for words in results)
    if count:
        yield f"Parity was not checked for {count} of {len(results)} ways: whether they compute the same is unknown."
    for words in dict.fromkeys(results):
        if words.startswith("passed on"):
            yield f"Parity {words} alone for {results.count(words)} of {len(results)} ways: the rest was not compared."
        if words.startswith("not proven"):
            yield f"Parity was {words} in memory for {results.count(words)} of {len(results)} ways."


def environment(sources: Sequence[Source]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Return what is known of the environment: name, and values with how many runs had them. What differs is first."""
    records = [record for source in sources for record in source.records]
    told = []
    machine = (Column("gpu_name", "GPU"), Column("cpu_model", "CPU"), Column("cores_allowed", "cores allowed"))
    for column in (*ENVIRONMENT, *machine):
        counts: dict[str, int] = {}
        for record in records:
            if (cell := value(record, column)) is not None:
                counts[show(cell)] = counts.get(show(cell), 0) + 1
        if counts:
            told.append((column.label, sorted(counts.items(), key=lambda item: -item[1])))
    return sorted(told, key=lambda item: len(item[1]) == 1)


def commands(found: Iterable[Piece]) -> list[tuple[str, str, str]]:
    """Return work, method and a command that runs it again, once for each: the first, which checks parity."""
    cases = [
        (piece.name, way.variant.label, again(run.command))
        for piece in found
        for way in piece.ways
        for run in way.variant.runs
        if run.command
    ]
    return list({case[:2]: case for case in reversed(cases)}.values())[::-1]


def again(command: str) -> str:
    """Return a command that does a work again and puts what it finds beside the evidence, and not into it."""
    try:
        words = iter(shlex.split(command))
    except ValueError:  # it was typed by hand into the file
        return command
    kept = []
    for word in words:
        name, given, _ = word.partition("=")
        if name not in _PLACES:
            kept.append(word)
        elif not given:
            next(words, None)
    out = "again" if kept[:2] == ["paralab", "train"] else "again.csv"
    return shlex.join([*kept, "--out", out])


_PLACES = ("--out", "--group", "--repeat")  # where a row stood


def dates(sources: Sequence[Source]) -> str:
    """Return the days on which the runs were made."""
    days = sorted({record.started_at[:10] for source in sources for record in source.records})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
