"""The sections of a report: verdicts, tables and charts, from the rows of runs and the logs of their ranks."""

import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from paralab.benchmarks.report import slowest, stats, work
from paralab.benchmarks.report.explain import Explanation, explain
from paralab.benchmarks.report.explain import chart as waterfall
from paralab.benchmarks.report.metrics import METRICS
from paralab.benchmarks.report.sources import Source
from paralab.benchmarks.report.verdict import Comparison, Family, Variant, families, parity_failures, variants
from paralab.benchmarks.report.work import ENVIRONMENT, HARDWARE, METHOD, WORK, Column, amount, show, value
from paralab.errors import DataError
from paralab.measure.categories import MEMORY_CATEGORIES
from paralab.measure.span import SpanRecord
from paralab.pages import charts
from paralab.pages.charts import Bar, Row, Series, Span
from paralab.pages.page import Chart
from paralab.records.log import LogRecord, MemoryRecord, SplitRecord, StepRecord, read_log
from paralab.records.log_files import log_paths
from paralab.records.row import COMM_AXES, RunRecord

STEP_TIME = METRICS["step_time_p50_s"]
FEWEST_RUNS = 6  # the least and the largest of fewer hold the median in less than 95 of 100 cases: 1 - 2 / 2^n
MOST_POINTS = 200  # of a curve
MOST_RANKS = 8  # whose memory is drawn one by one
MOST_SPANS = 3000  # of a timeline
SPAN_KINDS = {"F": "forward", "B": "backward", "W": "weight gradient"}


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
        cells = [getattr(run, column) for run in self.good]
        known = [float(cell) for cell in cells if cell is not None]
        return stats.median(known) if known else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Where the median step time lies, in seconds: of too few runs for an interval, from the least to the largest.

        None where there is one run or none.
        """
        if len(self.step_times) < 2:
            return None
        if len(self.step_times) < FEWEST_RUNS:
            return min(self.step_times), max(self.step_times)
        return stats.median_interval(self.step_times)

    @property
    def spread_name(self) -> str:
        """How its interval is called."""
        return "range" if len(self.step_times) < FEWEST_RUNS else "95% interval"


@dataclass
class Piece:
    """One piece of work on one kind of hardware, and all the ways in which it was done. Only these are ranked."""

    name: str
    device: str
    unit: str
    ways: list[Way]
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
        return _MEMORY_NAMES[self.memory_column]

    @property
    def ranked(self) -> list[Way]:
        """The ways that have a step time, the fastest first."""
        return sorted((way for way in self.ways if way.step_times), key=lambda way: stats.median(way.step_times))


def pieces(sources: Sequence[Source]) -> list[Piece]:
    """Return every piece of work: first those done in several ways, and among equals GPUs first."""
    origin = {id(record): source for source in sources for record in source.records}
    groups = work.group([record for source in sources for record in source.records], WORK).values()
    found = [_piece(records, origin) for records in groups]
    found.sort(key=lambda piece: (len(piece.ways) == 1, piece.device != "cuda"))
    for number, piece in enumerate(found, start=1):
        piece.number = number
        piece.references = _references(piece, found)
        piece.charts = [chart for draw in _CHARTS if (chart := draw(piece)) is not None]
        piece.charts += [chart for way in piece.ways if way.explanation and (chart := waterfall(way.explanation))]
        piece.timelines = _timelines(piece)
    return found


def _references(piece: Piece, found: Sequence[Piece]) -> list[Way]:
    """Return the runs of one process that ate the same data as a piece, on whatever hardware."""
    same = [column for column in WORK if column not in HARDWARE and column.name != "precision"]
    mine = work.key(piece.ways[0].variant.runs[0], same)
    singles = [way for other in found for way in other.ways if _is_single(way) and way.good]
    return [way for way in singles if work.key(way.good[0], same) == mine][:1]


def _piece(records: list[RunRecord], origin: dict[int, Source]) -> Piece:
    files = {id(record): origin[id(record)].label for record in records}
    ways = [Way(variant, _logs(variant, origin)) for variant in variants(records, files)]
    first = next((record for record in records if record.status == "ok"), records[0])
    piece = Piece(work.work_label(first), first.device or "unknown", first.unit or "samples", ways)
    of_variant = {id(way.variant): way for way in ways}
    for family in families([way.variant for way in ways]):
        compared = family.compare(STEP_TIME, name=piece.name)
        for variant, comparison in zip(family.others, compared, strict=True):
            of_variant[id(variant)].against_base = comparison
            of_variant[id(variant)].explanation = explain(family.base, variant)
        piece.verdict.append(_verdict(family, compared))
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
    return rows if path.name.endswith(".rank0.jsonl") else [row for row in rows if not isinstance(row, StepRecord)]


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
    "no data": "No data: {}.",
}


def _verdict(family: Family, compared: Sequence[Comparison]) -> str:
    """Say in words what was found about the variants beside one baseline."""
    base = family.base.samples(STEP_TIME)
    if not base and not any(comparison.other_runs for comparison in compared):
        return "No run came to its end."
    time = f"{amount(stats.median(base), STEP_TIME.column)} a step" if base else "no good run"
    said = [f"Compared with {family.base.label} ({time}):"]
    for verdict, sentence in _SAID.items():
        if names := [_with_change(comparison) for comparison in compared if comparison.verdict == verdict]:
            said.append(sentence.format(listed(names)))
    return " ".join(said)


def _with_change(comparison: Comparison) -> str:
    change = comparison.change_percent
    if change is None or comparison.verdict not in ("better", "worse"):
        return comparison.other
    return f"{comparison.other} by {abs(change):.1f}%"


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: commas, and `and` before the last."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
    said = [f"{count} of {len(records)} {text}." for count, text in counted if count]
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


def _dots(piece: Piece) -> Chart | None:
    rows = [Row(way.variant.label, way.step_times, stats.median(way.step_times), way.interval) for way in piece.ranked]
    if not rows:
        return None
    drawing = charts.dots(rows, title="Step time of every run", unit=_unit(STEP_TIME.column))
    return Chart("Step time", drawing, _spread_caption(piece.ranked))


def _spread_caption(ways: Sequence[Way]) -> str:
    names = {way.spread_name for way in ways if way.interval}
    if not names:
        return "One dot is one run."
    if names == {"range"}:
        return "One dot is one run. The band is their range, the bar their median."
    fewer = f"; of fewer than {FEWEST_RUNS} runs, it is their range" if len(names) > 1 else ""
    return f"One dot is one run. The band is the 95% interval of their median{fewer}."


def _throughput_against_memory(piece: Piece) -> Chart | None:
    points = []
    for way in piece.ways:
        memory, speed = way.median(piece.memory_column), way.median(piece.throughput_column)
        if memory is not None and speed is not None:
            points.append((way.variant.label, memory, speed))
    if len(points) < 2:
        return None
    names = (f"memory of a rank ({piece.memory_name})", f"{piece.throughput_column[:-6]}/s")
    units = (_unit(piece.memory_column), _unit("number"))
    drawing = charts.scatter(points, title="Throughput against memory", units=units, names=names, palette=piece.labels)
    return Chart("Throughput against memory", drawing, "On the line: nothing here is both faster and smaller.")


_MEMORY_NAMES = {
    "gpu_allocated_peak_bytes": "GPU, allocated",
    "memory_tensors_peak_bytes": "tensors",
    "process_peak_bytes": "process",
}


def _memory(piece: Piece) -> Chart | None:
    rows = [bar for way in piece.ways for bar in _memory_bars(way)]
    if not rows:
        return None
    drawing = charts.bars(rows, title="Memory by category", unit=_unit("memory_bytes"))
    caption = "At the peak of each rank." if any(" rank " in row.label for row in rows) else "Largest over the ranks."
    return Chart("Memory by category", drawing, caption)


def _memory_bars(way: Way) -> list[Bar]:
    ranks = sorted((row for row in way.logs if isinstance(row, MemoryRecord)), key=lambda row: row.rank)
    named: list[tuple[str, MemoryRecord | RunRecord, str]]
    if len(ranks) > MOST_RANKS:
        least, *_, most = sorted(ranks, key=_held_bytes)
        named = [(f"{way.variant.label}, {which} rank {row.rank}", row, "{}_bytes")
                 for which, row in (("fullest", most), ("emptiest", least))]  # fmt: skip
    elif ranks:
        named = [(f"{way.variant.label}, rank {row.rank}", row, "{}_bytes") for row in ranks]
    else:
        named = [(way.variant.label, way.good[-1], "memory_{}_bytes")] if way.good else []
    bars = []
    for label, row, pattern in named:
        parts = {kind: getattr(row, pattern.format(kind)) for kind in MEMORY_CATEGORIES}
        known = {kind: float(size) for kind, size in parts.items() if size}
        if known:
            bars.append(Bar(label, known))
    return bars


def _held_bytes(row: MemoryRecord) -> int:
    return sum(getattr(row, f"{kind}_bytes") or 0 for kind in MEMORY_CATEGORIES)


def _where_time_goes(piece: Piece) -> Chart | None:
    rows = [bar for way in piece.ways for bar in _time_bars(way)]
    if not rows:
        return None
    drawing = charts.bars(rows, title="Where the time of a step goes", unit=_unit("at_s"))
    return Chart("Where the time of a step goes", drawing, "Of one run, in the few steps that are looked at untimed.")


def _time_bars(way: Way) -> list[Bar]:
    splits = [row for row in way.logs if isinstance(row, SplitRecord)]
    return slowest.bars(way.variant.label, way.good[-1], splits, most_ranks=MOST_RANKS) if way.good else []


def _communication(piece: Piece) -> Chart | None:
    runs = {way.variant.label: way.good[-1] for way in piece.ways if way.good}
    kind, note = "sent", "Bytes that leave the rank which sends most, in one step."
    # rows of older versions say what a ring would send, not what the backend did: then all of them are shown by that
    if any(_over_axes(run, "ring") and not _over_axes(run, "sent") for run in runs.values()):
        kind, note = "ring", "Bytes of the rank that sends most, in one step, by ring algorithms."
    rows = []
    for label, run in runs.items():
        told = _over_axes(run, f"predicted_{kind}")
        if known := {axis: size for axis, size in _over_axes(run, kind).items() if size}:
            rows.append(Bar(label, known, sum(told.values()) if told else None))
    if not rows:
        return None
    drawing = charts.bars(rows, title="Communication by axis", unit=_unit("sent_bytes"))
    return Chart("Communication by axis", drawing, note)


def _over_axes(run: RunRecord, kind: str) -> dict[str, float]:
    sizes = {axis: getattr(run, f"comm_{axis}_{kind}_bytes") for axis in COMM_AXES}
    return {axis: size for axis, size in sizes.items() if size is not None}


def _loss(piece: Piece) -> Chart | None:
    own = [(way.variant.label, way) for way in piece.ways]
    known = {id(way) for way in piece.ways}
    curves = [_curve(label, way) for label, way in own]
    curves += [_curve(f"{way.variant.label} (1 process)", way) for way in piece.references if id(way) not in known]
    series = [curve for curve in curves if curve.points]
    if not any(label == curve.label for label, _ in own for curve in series):
        return None
    drawing = charts.lines(series, title="Loss", unit=_unit("number"), along="step", palette=piece.labels)
    reference = any(one.reference for one in series)
    return Chart("Loss", drawing, "Thick and pale: one process, the reference." if reference else "")


def _curve(label: str, way: Way) -> Series:
    steps = [row for row in way.logs if isinstance(row, StepRecord) and row.loss is not None]
    points = [(float(row.step), row.loss or 0.0) for row in steps]
    return Series(label, points[:: -(-len(points) // MOST_POINTS) or 1], reference=_is_single(way))


def _is_single(way: Way) -> bool:
    return value(way.variant.runs[0], METHOD[0]) == "single"


def _timelines(piece: Piece) -> list[Chart]:
    found = []
    for way in piece.ways:
        if boxes := _boxes([row for row in way.logs if isinstance(row, SpanRecord)]):
            title = f"Pipeline timeline: {way.variant.label}"
            drawing = charts.gantt(boxes, title=title, unit=_unit("at_s"), kinds=SPAN_KINDS)
            pale = "faded: a later stage of the rank" if any(box.pale for box in boxes) else ""
            caption = ", ".join(filter(None, (_bubble(way), "numbers are micro-batches", pale)))
            found.append(Chart(title, drawing, f"{caption[0].upper()}{caption[1:]}."))
    return found


def _boxes(spans: Sequence[SpanRecord]) -> list[Span]:
    """Return the passes of the last step, rank by rank."""
    last = max((row.step for row in spans), default=None)
    shown = sorted((row for row in spans if row.step == last), key=lambda row: (row.rank, row.start_s))[:MOST_SPANS]
    first = {row.rank: min(other.stage for other in shown if other.rank == row.rank) for row in shown}
    return [
        Span(f"rank {row.rank}", row.kind, str(row.micro_batch), row.start_s, row.end_s,
             pale=row.stage > first[row.rank], note=f" of stage {row.stage}")
        for row in shown
    ]  # fmt: skip


def _bubble(way: Way) -> str:
    measured, theory = way.median("bubble_share"), way.median("bubble_theory_share")
    told = f"{amount(measured, 'bubble_share')} idle" if measured is not None else ""
    expected = f"{amount(theory, 'bubble_share')} in theory" if theory is not None else ""
    return ", ".join(filter(None, (told, expected)))


_CHARTS: tuple[Callable[[Piece], Chart | None], ...] = (
    _dots,
    _throughput_against_memory,
    _memory,
    _where_time_goes,
    _communication,
    _loss,
)


def scaling(sources: Sequence[Source]) -> list[Chart]:
    """Return the efficiency of each strategy over the number of processes, wherever there is more than one."""
    good = [record for source in sources for record in source.records if record.status == "ok"]
    good = [record for record in good if record.samples_per_s and record.world_size and record.global_batch_size]
    alike = tuple(column for column in WORK if column.name not in ("world_size", "nodes", "gpu_count"))
    each = tuple(column for column in alike if column.name != "global_batch_size")
    found = [_efficiency(runs, "the global batch stays the same") for runs in work.group(good, alike).values()]
    by_share: dict[object, list[RunRecord]] = {}
    for record in good:
        share = (record.global_batch_size or 0) / (record.world_size or 1)
        by_share.setdefault((work.key(record, each), share), []).append(record)
    found += [_efficiency(runs, "the batch grows with the processes") for runs in by_share.values()]
    return [chart for chart in found if chart is not None]


def _efficiency(runs: Sequence[RunRecord], how: str) -> Chart | None:
    """Draw throughput per process over that of one process; of the fewest processes where one was not run."""
    speeds: dict[str, dict[int, float]] = {}
    for parts in work.group(runs, (METHOD[0], METHOD[2], Column("world_size", ""), METHOD[1])).values():
        name = " ".join(show(value(parts[0], column)) for column in (METHOD[0], METHOD[2]))
        speed = stats.median([run.samples_per_s or 0.0 for run in parts])
        places = speeds.setdefault(name, {})
        world = parts[0].world_size or 1
        places[world] = max(places.get(world, 0.0), speed)  # the best layout of that many
    sizes = {world for places in speeds.values() for world in places}
    if len(sizes) < 2:
        return None
    one = max((places[1] for places in speeds.values() if 1 in places), default=None)
    series = [Series("ideal", [(float(world), 1.0) for world in sorted(sizes)], reference=True)]
    for name, places in speeds.items():
        fewest = min(places)
        ideal = one if one is not None else places[fewest] / fewest
        points = [(float(world), speed / world / ideal) for world, speed in sorted(places.items())]
        if one is not None and 1 not in places:
            points.insert(0, (1.0, 1.0))
        if len(points) > 1:
            series.append(Series(name, points))
    if len(series) == 1:
        return None
    first = runs[0]
    drawing = charts.lines(
        series, title="Scaling efficiency", unit=_unit("efficiency_share"), along="processes", zero=True, every=True
    )
    shared = first.device == "cpu" and first.nodes in (None, 1)
    cores = f" All processes share the {show(first.cores_allowed)} cores of one machine." if shared else ""
    link = f"at {first.link_mbit_per_s:g} Mbit/s" if first.link_mbit_per_s else ""
    what = " ".join(filter(None, (first.model, first.size, show(first.precision), (first.device or "").upper(), link)))
    base = "one process" if one is not None else "the fewest processes"
    return Chart(f"{what}: {how}", drawing, f"Throughput per process over that of {base}.{cores}")


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


def _unit(column: str) -> charts.Format:
    return partial(amount, column=column)
