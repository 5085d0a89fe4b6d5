"""The tables of a report: the ways of one piece of work, what ran alone, every run, what failed and where it ran."""

from collections.abc import Iterable, Sequence

from paralab.benchmarks.report import slowest, units
from paralab.benchmarks.report.formats import ratio_text, verdict_text
from paralab.benchmarks.report.metrics import STEP_TIME
from paralab.benchmarks.report.sections import Piece, Way, environment
from paralab.benchmarks.report.sources import Source
from paralab.benchmarks.report.work import amount, show
from paralab.console.quantities import interval_text
from paralab.pages.table import UNKNOWN, Cell, Column, Table, table
from paralab.records.row import COMM_AXES, RunRecord

NOTHING = Cell(UNKNOWN)
_MEMORY = "Peak on the rank that needs most"


def of_ways(piece: Piece) -> Table:
    """Return a line for each way of doing a piece of work, the fastest first, failed ones last."""
    ways = piece.ranked + [way for way in piece.ways if way not in piece.ranked]
    alone = len(ways) == 1
    bases = {way.against_base.base for way in ways if way.against_base}
    base = next(iter(bases)) if len(bases) == 1 else ""
    columns = (
        Column("method", name_of_row=True),
        Column("verdict"),
        Column("compared with"),
        Column("step", number=True, about="Median of the runs' median step times"),
        Column(_spread_name(ways), number=True),
        Column("time to loss", number=True, about="Median of the runs that reached the loss"),
        Column("samples to loss", number=True),
        *_beside_each_other(piece, base or "baseline"),
        *_measured(piece),
        Column("good runs", number=True),
    )
    rows = [
        (Cell(way.variant.label), _verdict(way, alone=alone), NOTHING if base else _base(way), _time(way),
         _spread(way, ways), _number(way, "time_to_loss_s"), _number(way, "samples_to_loss"), *_ratio(way),
         *_amounts(way, piece), _good(way))
        for way in ways
    ]  # fmt: skip
    return table(f"Work {piece.number}: {piece.name}", columns, rows)


def of_alone(pieces: Sequence[Piece], *, kind: str) -> Table:
    """Return a line for each piece of work that was done in one way only. kind: the hardware, for the caption."""
    of_each = [(piece, way) for piece in pieces for way in piece.ways]
    ways = [way for _, way in of_each]
    kinds = {piece.memory_name for piece in pieces}
    columns = (
        Column("work", name_of_row=True, wide=True),
        Column("method"),
        Column("step", number=True, about="Median of the runs' median step times"),
        Column(_spread_name(ways), number=True),
        Column("samples/s", number=True),
        Column("tokens/s", number=True),
        Column("memory" if len(kinds) > 1 else f"memory ({next(iter(kinds), '')})", number=True, about=_MEMORY),
        Column("what memory"),
        Column("MFU", number=True),
        Column("parity"),
        Column("good runs", number=True),
    )
    rows = [
        (Cell(piece.name, href=f"#work-{piece.number}"), Cell(way.variant.label), _time(way), _spread(way, ways),
         _rate(way, "samples_per_s"), _rate(way, "tokens_per_s"), _number(way, piece.memory_column),
         Cell(piece.memory_name) if len(kinds) > 1 else NOTHING, _number(way, "mfu"), _parity(way), _good(way))
        for piece, way in of_each
    ]  # fmt: skip
    return table(f"Work done in one way only, {kind}", columns, rows)


def of_runs(pieces: Sequence[Piece], *, kind: str) -> Table:
    """Return a line for each run, in the order in which they were made, with tools to filter it."""
    runs = sorted(
        ((run, way, piece) for piece in pieces for way in piece.ways for run in way.variant.runs),
        key=lambda one: one[0].started_at,
    )
    columns = (
        Column("work", number=True, about="Number of the piece of work above"),
        Column("model", choose=True),
        Column("processes", number=True, choose=True),
        Column("method", name_of_row=True, choose=True),
        Column("status", choose=True),
        Column("step, median", number=True),
        Column("95% of steps under", number=True, later=True),
        Column("samples/s", number=True),
        Column("tokens/s", number=True, later=True),
        Column("tensors, peak", number=True, about="On a GPU what its allocator gave out in the timed steps"),
        Column("process, peak", number=True, later=True),
        Column("sent in a step", number=True, about="Bytes that leave the rank which sends most"),
        Column("MFU", number=True),
        Column("last loss", number=True),
        Column("parity", choose=True),
        Column("started (UTC)"),
        Column("run", later=True),
    )
    return table(f"Every run, {kind}", columns, [_run(*one) for one in runs], tools=True)


def _run(run: RunRecord, way: Way, piece: Piece) -> Sequence[Cell]:
    model = " ".join(filter(None, (run.model, run.size))) or UNKNOWN
    tensors = run.memory_tensors_peak_bytes if run.gpu_allocated_peak_bytes is None else run.gpu_allocated_peak_bytes
    passed = {None: UNKNOWN, True: "passed", False: "FAILED"}[run.parity]
    return (
        Cell(str(piece.number), piece.number, href=f"#work-{piece.number}"),
        Cell(model),
        _cell(run.world_size, "world_size"),
        Cell(way.variant.label),
        Cell(run.status, look="" if run.status == "ok" else "is-failed"),
        _cell(run.step_time_p50_s, "step_time_p50_s"),
        _cell(run.step_time_p95_s, "step_time_p95_s"),
        _cell(run.samples_per_s, "samples"),
        _cell(run.tokens_per_s, "tokens"),
        _cell(tensors, "memory_bytes"),
        _cell(run.process_peak_bytes, "process_peak_bytes"),
        _cell(_sent_bytes(run), "sent_bytes"),
        _cell(run.mfu, "mfu"),
        _cell(run.loss_last, "loss"),
        Cell(passed, look="is-failed" if run.parity is False else ""),
        Cell(run.started_at[:19].replace("T", " ")),
        Cell(run.run_id),
    )


def _sent_bytes(run: RunRecord) -> int | None:
    """Return what left the rank that sends most, over all axes: as the backend sent it, else by ring algorithms."""
    for kind in ("sent", "ring"):
        sizes = [size for axis in COMM_AXES if (size := getattr(run, f"comm_{axis}_{kind}_bytes")) is not None]
        if sizes:
            return sum(sizes)
    return None


def of_failures(pieces: Sequence[Piece]) -> Table:
    """Return a line for each run that failed: which rank, at which step and why."""
    columns = (Column("method", name_of_row=True), Column("work"), Column("status"), Column("rank", number=True),
               Column("step", number=True), Column("reason", wide=True))  # fmt: skip
    rows = [
        (Cell(way.variant.label), Cell(piece.name), Cell(run.status, look="is-failed"),
         _whole(run.failed_rank), _whole(run.failed_step), Cell(show(run.reason)))
        for piece in pieces for way in piece.ways for run in way.variant.failed
    ]  # fmt: skip
    return table("Runs that failed", columns, rows)


def of_slowest(pieces: Sequence[Piece]) -> Table:
    """Return a line for each way in which one rank held the others up: in how many runs, and the worst of them."""
    columns = (Column("method", name_of_row=True), Column("work"), Column("runs", number=True),
               Column("longer than the others", number=True), Column("the worst of them", wide=True))  # fmt: skip
    rows = []
    for piece in pieces:
        for way in piece.ways:
            if slow := [run for run in way.good if slowest.slowest(run)]:
                worst = max(slow, key=lambda run: run.straggler_ratio or 0.0)
                ratio = worst.straggler_ratio or 0.0
                rows.append((Cell(way.variant.label), Cell(piece.name), Cell(f"{len(slow)} of {len(way.good)}"),
                             Cell(f"{ratio:.1f} times", ratio), Cell(slowest.slowest(worst))))  # fmt: skip
    return table("Ranks that the others wait for", columns, rows)


def of_environment(sources: Sequence[Source]) -> Table:
    """Return a line for each thing that is known of machine and software; what differs between runs comes first."""
    columns = Column("what", name_of_row=True), Column("value, and how many runs had it", wide=True), Column("equal")
    rows = []
    for label, values in environment(sources):
        several = len(values) > 1
        told = ", ".join(f"{name} ({count} run{'s' * (count > 1)})" if several else name for name, count in values)
        agree = Cell("differs", look="is-insufficient") if several else Cell("in all runs")
        rows.append((Cell(label), Cell(told), agree))
    return table("What the rows say of machine and software", columns, rows)


def _beside_each_other(piece: Piece, base: str) -> Iterable[Column]:
    what = "step" if piece.metric == STEP_TIME else "time to loss"
    about = "Of this way over what it is compared with: that of the medians or, of repeats in turns, of the pairs"
    chance = "Probability of such a difference by chance, corrected for how many were compared"
    return Column(f"{what} / {base}", number=True, about=about), Column("p", number=True, about=chance)


def _measured(piece: Piece) -> Iterable[Column]:
    yield Column("tokens/s" if piece.unit == "tokens" else "samples/s", number=True)
    yield Column(f"memory ({piece.memory_name})", number=True, about=_MEMORY)
    yield Column("MFU", number=True, about="Model FLOP/s over the peak of the device")
    yield Column("parity", about="Whether it computes what one process computes")
    yield Column("loss off by", number=True, about="The largest difference to the loss of one process")


def _amounts(way: Way, piece: Piece) -> Iterable[Cell]:
    yield _rate(way, piece.throughput_column)
    yield _number(way, piece.memory_column)
    yield _number(way, "mfu")
    yield _parity(way)
    yield _number(way, "loss_difference_max")


def _verdict(way: Way, *, alone: bool) -> Cell:
    if way.against_base is None:
        return NOTHING if alone else Cell("baseline", look="is-base")
    kind = way.against_base.verdict.replace("~", "equal").replace(" ", "-")
    text = verdict_text(way.against_base)
    return Cell("~ no evidence" if text == "~" else text, look=f"is-{kind}")


def _base(way: Way) -> Cell:
    return NOTHING if way.against_base is None else Cell(way.against_base.base)


def _ratio(way: Way) -> Iterable[Cell]:
    found = way.against_base
    yield NOTHING if found is None else Cell(ratio_text(found), found.ratio)
    yield NOTHING if found is None or found.p is None else Cell(f"{found.p:.2g}", found.p)


def _time(way: Way) -> Cell:
    return _number(way, STEP_TIME.column)


def _spread_name(ways: Sequence[Way]) -> str:
    kinds = {way.spread_name for way in ways if way.interval}
    return kinds.pop() if len(kinds) == 1 else "95% interval, or range"


def _spread(way: Way, ways: Sequence[Way]) -> Cell:
    """Return where the median lies; where columns mix them, a range says that it is one."""
    if way.interval is None:
        return NOTHING
    mixed = len({other.spread_name for other in ways if other.interval}) > 1
    name = "range " if mixed and way.spread_name == "range" else ""
    return Cell(f"{name}{interval_text(way.interval)}", way.interval[0])


def _parity(way: Way) -> Cell:
    return Cell(way.parity, look="is-failed" if way.variant.parity is False else "")


def _good(way: Way) -> Cell:
    return Cell(f"{len(way.good)} of {len(way.variant.runs)}", len(way.good))


def _number(way: Way, column: str) -> Cell:
    return _cell(way.median(column), column)


def _rate(way: Way, column: str) -> Cell:
    """Return a throughput without its unit, which stands above the column."""
    return _cell(way.median(column), "number")


def _cell(number: float | None, column: str) -> Cell:
    """Return an amount with its unit: sizes in MiB as in the charts, others as the terminal has them."""
    if number is not None and column.endswith("_bytes"):
        return Cell(units.mib(number / units.MIB), number)
    return Cell(amount(number, column), number)


def _whole(number: int | None) -> Cell:
    return NOTHING if number is None else Cell(show(number), number)


def hardware(piece: Piece) -> str:
    """Return what a piece of work ran on, in the words of captions: kinds are never in one table."""
    return {"cuda": "on GPUs", "cpu": "on CPUs"}.get(piece.device, "on unknown hardware")


def by_hardware(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """Return pieces of work by what they ran on, those on GPUs first."""
    found: dict[str, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: piece.device != "cuda"):
        found.setdefault(hardware(piece), []).append(piece)
    return found
