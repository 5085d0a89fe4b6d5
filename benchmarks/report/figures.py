"""The charts of a piece of work: step times, throughput against memory, memory, parts of a step, bytes, losses, passes.

Pieces of the same work have one scale for each quantity, but for those that it would press into a corner.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paralab.benchmarks.report import losses, slowest, stats, work
from paralab.benchmarks.report.explain import chart as waterfall
from paralab.benchmarks.report.explain import reached_s
from paralab.benchmarks.report.losses import Curve
from paralab.benchmarks.report.units import MIB, mib, plain
from paralab.benchmarks.report.work import HARDWARE, METHOD, WORK, amount, value
from paralab.console.phases import Phases
from paralab.console.quantities import times_on
from paralab.measure.categories import MEMORY_CATEGORIES
from paralab.measure.span import SpanRecord
from paralab.measure.trace_events import PASSES
from paralab.pages import charts, palette, scatter
from paralab.pages.charts import Bar, Row
from paralab.pages.gantt import Span, gantt
from paralab.pages.marks import LARGEST
from paralab.pages.page import Chart
from paralab.pages.scatter import Spot
from paralab.records.log import MemoryRecord, SplitRecord, StepRecord
from paralab.records.row import COMM_AXES, RunRecord

if TYPE_CHECKING:
    from paralab.benchmarks.report.sections import Piece, Way

MOST_RANKS = 8  # whose memory is drawn one by one
MOST_EMPTY = 3  # times what a piece of work reaches itself, that an axis goes for the sake of others
MOST_SPANS = 3000  # of a timeline
MEMORY_NAMES = {
    "gpu_allocated_peak_bytes": "GPU, allocated",
    "memory_tensors_peak_bytes": "tensors",
    "process_peak_bytes": "process",
}


@dataclass(frozen=True)
class Reach:
    """How far the axes of charts of the same work go: seconds and MiB."""

    step_s: float = 0.0
    parts_s: float = 0.0
    memory_mib: float = 0.0
    sent_mib: float = 0.0
    explained_s: float = 0.0


def draw(pieces: Sequence["Piece"], phases: Phases) -> None:
    """Give each piece its charts and timelines. phases: its steps are pieces."""
    alike: dict[object, list[Piece]] = {}
    same = [column for column in WORK if column not in HARDWARE and column.name != "precision"]
    for piece in pieces:
        alike.setdefault((piece.device, work.key(piece.ways[0].variant.runs[0], same)), []).append(piece)
    for group in alike.values():
        reach = _reach(group)
        for piece in group:
            piece.charts = list(_charts(piece, _common(_reach([piece]), reach)))
            piece.timelines = _timelines(piece)
            phases.advance()


def _charts(piece: "Piece", reach: Reach) -> Iterable[Chart]:
    made = (
        _dots(piece, reach),
        _throughput_against_memory(piece),
        _memory(piece, reach),
        _where_time_goes(piece, reach),
        _communication(piece, reach),
    )
    yield from (chart for chart in made if chart is not None)
    yield from _loss(piece)
    for way in piece.ways:
        if way.explanation and (chart := waterfall(way.explanation, reach=reach.explained_s)):
            yield chart


def _reach(pieces: Sequence["Piece"]) -> Reach:
    ways = [way for piece in pieces for way in piece.ways]
    told = [way.explanation for way in ways if way.explanation]
    return Reach(
        step_s=max((time for way in ways for time in way.step_times if time < LARGEST), default=0.0),
        parts_s=charts.reaching(bar for way in ways for bar in _time_bars(way)),
        memory_mib=charts.reaching(bar for way in ways for bar in _memory_bars(way)),
        sent_mib=charts.reaching(bar for piece in pieces for bar in _communication_bars(piece)[0]),
        explained_s=max((reached_s(one) for one in told), default=0.0),
    )


def _common(own: Reach, reach: Reach) -> Reach:
    """Return the reach of pieces of the same work, its own where that would leave most of an axis empty."""
    ends = ((name, getattr(own, name), getattr(reach, name)) for name in Reach.__dataclass_fields__)
    return Reach(**{name: mine if all_ > MOST_EMPTY * mine > 0 else all_ for name, mine, all_ in ends})


def looks(piece: "Piece") -> dict[str, palette.Look]:
    """Return how each way of a piece is drawn: by its strategy."""
    return palette.of_strategies((way.variant.label, strategy_of(way.variant.runs[0])) for way in piece.ways)


def strategy_of(run: RunRecord) -> str | None:
    """Return the strategy that a run had, or was to have."""
    found = value(run, METHOD[0])
    return None if found is None else str(found)


def _dots(piece: "Piece", reach: Reach) -> Chart | None:
    drawn = looks(piece)
    rows = [
        Row(way.variant.label, way.step_times, stats.median(way.step_times), way.interval, drawn[way.variant.label])
        for way in piece.ranked
    ]
    if not rows:
        return None
    unit = times_on(reach.step_s)
    drawing = charts.dots(rows, title="Step time of every run", unit=unit, reach=[reach.step_s])
    return Chart("Step time", drawing, spread_caption([way.step_times for way in piece.ranked]))


def spread_caption(samples: Sequence[Sequence[float]]) -> str:
    """Say what dots and bands are. samples: one number for each run, of each row."""
    names = {stats.spread_name(values) for values in samples if len(values) > 1}
    if not names:
        return "One dot is one run."
    if names == {stats.RANGE}:
        return "One dot is one run. The band is their range, the bar their median."
    fewer = f"; of fewer than {stats.FEWEST_RUNS} runs, it is their range" if len(names) > 1 else ""
    return f"One dot is one run. The band is the 95% interval of their median{fewer}."


def _throughput_against_memory(piece: "Piece") -> Chart | None:
    drawn, spots = looks(piece), []
    for way in piece.ways:
        memory, speed = way.median(piece.memory_column), way.median(piece.throughput_column)
        if memory is None or speed is None or not max(abs(memory), abs(speed)) < LARGEST:
            continue
        label = way.variant.label
        across = stats.spread([size / MIB for size in way.known(piece.memory_column)])
        up = stats.spread(way.known(piece.throughput_column))
        spots.append(Spot(label, memory / MIB, speed, drawn[label], across, up))
    if len(spots) < 2:
        return None
    names = (f"memory of a rank ({MEMORY_NAMES[piece.memory_column]})", f"{piece.throughput_column[:-6]}/s")
    drawing = scatter.scatter(spots, title="Throughput against memory", units=(mib, plain), names=names)
    caption = "On the line: nothing here is both faster and smaller."
    if any(spot.y_interval for spot in spots):
        caption += f" Bars are the {stats.spread_name(_most_runs(piece))} over runs."
    return Chart("Throughput against memory", drawing, caption)


def _most_runs(piece: "Piece") -> list[RunRecord]:
    return max((way.good for way in piece.ways), key=len)


def _memory(piece: "Piece", reach: Reach) -> Chart | None:
    rows = [bar for way in piece.ways for bar in _memory_bars(way)]
    if not rows:
        return None
    drawing = charts.bars(rows, looks=palette.MEMORY, title="Memory by category", unit=mib, reach=[reach.memory_mib])
    where = "At the peak of each rank" if any(row.group for row in rows) else "Largest over the ranks"
    caption = f"{where}, of one run, counted tensor by tensor in a step that is not timed."
    if any(row.interval for row in rows):
        caption += f" Thin lines are the {stats.spread_name(_most_runs(piece))} over runs."
    if piece.memory_column == "gpu_allocated_peak_bytes":
        caption += " The table has what the GPU's allocator gave out in the timed steps, which is not quite the same."
    return Chart("Memory by category", drawing, caption)


def _memory_bars(way: "Way") -> list[Bar]:
    label = way.variant.label
    ranks = sorted((row for row in way.logs if isinstance(row, MemoryRecord)), key=lambda row: row.rank)
    if not ranks:
        known = _categories(way.good[-1], "memory_{}_bytes") if way.good else {}
        sums = [sum(_categories(run, "memory_{}_bytes").values()) for run in way.good]
        between = stats.spread(sums) if min(sums, default=0.0) < max(sums, default=0.0) < LARGEST else None
        return [Bar(label, known, interval=between)] if known else []
    named = [(f"rank {row.rank}", row) for row in ranks]
    if len(ranks) > MOST_RANKS:
        least, *_, most = sorted(ranks, key=_held)
        label = f"{label}: the fullest and the emptiest of {len(ranks)} ranks"
        named = [(f"rank {row.rank}", row) for row in (most, least)]
    return [Bar(name, known, group=label) for name, row in named if (known := _categories(row, "{}_bytes"))]


def _categories(row: MemoryRecord | RunRecord, pattern: str) -> dict[str, float]:
    """Return MiB by category."""
    sizes = {kind: getattr(row, pattern.format(kind)) for kind in MEMORY_CATEGORIES}
    return {kind: size / MIB for kind, size in sizes.items() if size}


def _held(row: MemoryRecord) -> float:
    return sum(_categories(row, "{}_bytes").values())


def _where_time_goes(piece: "Piece", reach: Reach) -> Chart | None:
    rows = [bar for way in piece.ways for bar in _time_bars(way)]
    if not rows:
        return None
    drawing = charts.bars(
        rows,
        looks=slowest.LOOKS,
        title="Where the time of a step goes",
        unit=times_on(reach.parts_s),
        reach=[reach.parts_s],
    )
    return Chart("Where the time of a step goes", drawing, "Of one run, in the few steps that are looked at untimed.")


def _time_bars(way: "Way") -> list[Bar]:
    splits = [row for row in way.logs if isinstance(row, SplitRecord)]
    return slowest.bars(way.variant.label, way.good[-1], splits, most_ranks=MOST_RANKS) if way.good else []


def _communication(piece: "Piece", reach: Reach) -> Chart | None:
    rows, kind = _communication_bars(piece)
    if not rows:
        return None
    drawing = charts.bars(
        rows, looks=palette.COMMUNICATION, title="Communication by axis", unit=mib, reach=[reach.sent_mib]
    )
    note = "Bytes that leave the rank which sends most, in one step."
    old = "Bytes of the rank that sends most, in one step, by ring algorithms."
    return Chart("Communication by axis", drawing, old if kind == "ring" else note)


def _communication_bars(piece: "Piece") -> tuple[list[Bar], str]:
    """Return a bar of each way, and which bytes they are: `sent`, or those that a ring would send."""
    runs = {way.variant.label: way.good[-1] for way in piece.ways if way.good}
    # rows of older versions say what a ring would send, not what the backend did: then all of them are shown by that
    old = any(_over_axes(run, "ring") and not _over_axes(run, "sent") for run in runs.values())
    kind, rows = "ring" if old else "sent", []
    for label, run in runs.items():
        told = _over_axes(run, f"predicted_{kind}")
        if known := {axis: size for axis, size in _over_axes(run, kind).items() if size}:
            rows.append(Bar(label, known, sum(told.values()) if told else None))
    return rows, kind


def _over_axes(run: RunRecord, kind: str) -> dict[str, float]:
    """Return MiB by axis."""
    sizes = {axis: getattr(run, f"comm_{axis}_{kind}_bytes") for axis in COMM_AXES}
    return {axis: size / MIB for axis, size in sizes.items() if size is not None}


def _loss(piece: "Piece") -> list[Chart]:
    drawn, known = looks(piece), {id(way) for way in piece.ways}
    curves = [_curve(way.variant.label, way, drawn[way.variant.label]) for way in piece.ways]
    if not any(curve.losses for curve in curves):
        return []
    others = [way for way in piece.references if id(way) not in known]
    curves = [_curve(f"{way.variant.label} (1 process)", way, palette.STRATEGIES["single"]) for way in others] + curves
    return losses.charts_of(curves, precision=piece.ways[0].variant.runs[0].precision)


def _curve(label: str, way: "Way", look: palette.Look) -> Curve:
    steps = [row for row in way.logs if isinstance(row, StepRecord) and row.loss is not None]
    known = {row.step: row.loss or 0.0 for row in steps if abs(row.loss or 0.0) < LARGEST}
    return Curve(label, known, look, reference=strategy_of(way.variant.runs[0]) == "single")


def _timelines(piece: "Piece") -> list[Chart]:
    found = []
    for way in piece.ways:
        if boxes := _boxes([row for row in way.logs if isinstance(row, SpanRecord)]):
            title = f"Pipeline timeline: {way.variant.label}"
            kinds = {kind: (name, palette.PASSES[kind]) for kind, name in PASSES.items()}
            long_s = max(box.end for box in boxes) - min(box.start for box in boxes)
            drawing = gantt(boxes, title=title, unit=times_on(long_s), looks=kinds)
            ranks = len({box.row.split(",")[0] for box in boxes})
            said = f"all {ranks} ranks in one step", _bubble(way), "numbers are micro-batches"
            caption = ", ".join(filter(None, said))
            found.append(Chart(title, drawing, f"{caption[0].upper()}{caption[1:]}."))
    return found


def _boxes(spans: Sequence[SpanRecord]) -> list[Span]:
    """Return the passes of the last step, rank by rank, and stage by stage of a rank that has several."""
    last = max((row.step for row in spans), default=None)
    shown = sorted((row for row in spans if row.step == last), key=lambda row: (row.rank, row.stage, row.start_s))
    stages: dict[int, set[int]] = {}
    for row in shown:
        stages.setdefault(row.rank, set()).add(row.stage)
    return [
        Span(
            _row_of(row, stages), row.kind, str(row.micro_batch), row.start_s, row.end_s, note=f" of stage {row.stage}"
        )
        for row in shown[:MOST_SPANS]
    ]


def _row_of(row: SpanRecord, stages: Mapping[int, set[int]]) -> str:
    return f"rank {row.rank}, stage {row.stage}" if len(stages[row.rank]) > 1 else f"rank {row.rank}"


def _bubble(way: "Way") -> str:
    measured, theory = way.median("bubble_share"), way.median("bubble_theory_share")
    told = f"{amount(measured, 'bubble_share')} idle" if measured is not None else ""
    expected = f"{amount(theory, 'bubble_share')} in theory" if theory is not None else ""
    return ", ".join(filter(None, (told, expected)))
