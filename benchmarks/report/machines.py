"""The same work on different machines, side by side: speed, utilisation, energy and cost, and no ranking."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paralab.benchmarks.report import stats, work
from paralab.benchmarks.report.sections import Piece, Way
from paralab.benchmarks.report.work import HARDWARE, WORK, amount
from paralab.console.quantities import interval_text, time_text
from paralab.errors import UsageError, did_you_mean
from paralab.pages.table import UNKNOWN, Cell, Column, Table, table
from paralab.records.row import RunRecord

_SAME = tuple(column for column in WORK if column not in HARDWARE)
_MACHINE = ("device", "gpu_name", "cpu_model", "cores_allowed", "nodes", "link_mbit_per_s")
PRICED = {"cpu": "node", "gpu": "GPU"}  # what one price is for: a machine without GPUs, or one GPU
_MILLION = 1e6
_HOUR_S = 3600.0


@dataclass(frozen=True)
class Place:
    """One way of doing a work on one machine."""

    way: Way
    run: RunRecord = field(repr=False)  # a good one

    @property
    def name(self) -> str:
        """Name the machine: how many nodes or GPUs of which kind, and the link between simulated nodes."""
        run, nodes = self.run, self.run.nodes or 1
        if run.device == "cuda":
            count = run.world_size or 1
            return f"{count} GPU{'s' * (count > 1)}: {run.gpu_name or 'unknown'}"
        link = f" at {run.link_mbit_per_s:g} Mbit/s" if run.link_mbit_per_s else ""
        each = " each" if nodes > 1 else ""
        cores = f", {run.cores_allowed:g} cores{each}" if run.cores_allowed else ""
        return f"{nodes} CPU node{'s' * (nodes > 1)}{link}: {run.cpu_model or 'unknown'}{cores}"

    @property
    def notes(self) -> str:
        """Say what a reader has to know of these figures."""
        said = ["simulated on one machine"] if self.run.link_mbit_per_s else []
        unsteady = sum(run.steady is False for run in self.way.good)
        said += [f"{unsteady} of {len(self.way.good)} runs never settled"] if unsteady else []
        said += [f"{len(self.way.variant.failed)} runs failed"] if self.way.variant.failed else []
        return "; ".join(said) or "none"

    @property
    def energy_j_per_sample(self) -> float | None:
        """Energy of a sample: of GPUs their mean power over samples a second, else that of its tokens."""
        power_w, rate = self.way.median("gpu_power_mean_w"), self.way.median("samples_per_s")
        if power_w is not None and rate:
            return power_w * (self.run.world_size or 1) / rate
        of_token = self.way.median("energy_per_token_j")
        return of_token * (self.run.sequence_length or 1) if of_token is not None else None

    def cost_of_million(self, prices: Mapping[str, float]) -> float | None:
        """Return the price of a million samples; None where no price of such a device is given."""
        kind = "gpu" if self.run.device == "cuda" else "cpu"
        rate = self.way.median("samples_per_s")
        if kind not in prices or not rate:
            return None
        devices = (self.run.world_size or 1) if kind == "gpu" else (self.run.nodes or 1)
        return prices[kind] * devices / _HOUR_S * _MILLION / rate


def prices_of(text: str | None) -> dict[str, float]:
    """Read the prices of an hour, such as cpu=0.05,gpu=2.50. Raises: UsageError."""
    found = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        if name not in PRICED:
            raise UsageError(
                f"--price-per-hour {part}: {name} has no price{did_you_mean(name, PRICED)}: use cpu or gpu"
            )
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < _MILLION:
            raise UsageError(f"--price-per-hour {part} is no price: use dollars from 0, such as {name}=2.50")
    return found


def of_machines(pieces: Sequence[Piece], prices: Mapping[str, float]) -> list[Table]:
    """Return a table for each work that was done on several machines, in the order in which they ran."""
    places = [Place(way, way.good[0]) for piece in pieces for way in piece.ways if way.good]
    by_work: dict[object, list[Place]] = {}
    for place in sorted(places, key=lambda place: place.run.started_at):
        by_work.setdefault(work.key(place.run, _SAME), []).append(place)
    several = (mine for mine in by_work.values() if len({_machine(place.run) for place in mine}) > 1)
    return [_table(mine, prices) for mine in several]


def _machine(run: RunRecord) -> tuple[object, ...]:
    return tuple(getattr(run, name) for name in _MACHINE)


def _table(places: Sequence[Place], prices: Mapping[str, float]) -> Table:
    columns = (
        Column("machine", name_of_row=True, wide=True),
        Column("method"),
        Column("processes", number=True),
        Column("samples/s", number=True),
        Column("step", number=True, about="Median of the runs' median step times"),
        Column("95% interval, or range", number=True),
        Column("CPU", number=True, about="Utilisation of the allowed cores, mean"),
        Column("GPU", number=True, about="Fraction of the time in which a kernel ran, mean"),
        Column("energy a sample", number=True, about="Of GPUs their mean power over samples a second"),
        Column("$ a million samples", number=True, about="At the prices of --price-per-hour"),
        Column("parity"),
        Column("runs", number=True),
        Column("notes", wide=True),
    )
    first = places[0].run
    what = ", ".join(filter(None, (" ".join(filter(None, (first.model, first.size))),
                                   f"batch {first.global_batch_size}", first.precision)))  # fmt: skip
    return table(what, columns, [tuple(_cells(place, prices)) for place in places])


def _cells(place: Place, prices: Mapping[str, float]) -> Iterator[Cell]:
    way, run = place.way, place.run
    yield Cell(place.name)
    yield Cell(way.variant.label)
    yield Cell(amount(run.world_size, "world_size"), run.world_size)
    rate, step_s = way.median("samples_per_s"), stats.median(way.step_times) if way.step_times else None
    yield Cell(amount(rate, "number"), rate)
    yield Cell(UNKNOWN if step_s is None else time_text(step_s), step_s)
    yield Cell(interval_text(way.interval) if way.interval else UNKNOWN)
    for column in ("cpu_utilisation_mean_share", "gpu_utilisation_mean_share"):
        share = way.median(column)
        yield Cell(amount(share, column), share)
    energy, cost = place.energy_j_per_sample, place.cost_of_million(prices)
    yield Cell(amount(energy, "energy_j"), energy)
    yield Cell(UNKNOWN if cost is None else f"{cost:.3g}", cost)
    yield Cell(way.parity)
    yield Cell(str(len(way.good)), len(way.good))
    yield Cell(place.notes)


def text(tables: Sequence[Table]) -> str:
    """Return the tables for a terminal: each machine with its ways below it, a line for each."""
    lines = []
    for each in tables:
        lines.append(f"\nsame work on different machines, side by side and not ranked:\n{each.caption}")
        at = {column.name: number for number, column in enumerate(each.columns)}
        shown = [name for name in _SHOWN if name in at]
        cells = [[row[at[name]].text for name in shown] for row in each.rows]
        widths = [max(map(len, column)) for column in zip(shown, *cells, strict=True)]
        lines.append(_aligned(shown, widths))
        by_machine: dict[str, list[str]] = {}
        for row, texts in zip(each.rows, cells, strict=True):
            by_machine.setdefault(row[0].text, []).append(_aligned(texts, widths))
        lines += [line for machine, ways in by_machine.items() for line in (f"  {machine}", *ways)]
    return "\n".join(lines)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line: the way on the left, and its numbers to the right of their columns."""
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"    {first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])


_SHOWN = ("method", "processes", "samples/s", "step", "CPU", "GPU", "energy a sample", "$ a million samples")
