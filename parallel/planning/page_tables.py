"""The tables of a plan's page: layouts, why other strategies lose, scaling, arithmetic, and what it was read from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paralab.pages.table import UNKNOWN, Cell, Column, Table, table
from paralab.planning import pictures, report
from paralab.planning.breakdown import CATEGORIES
from paralab.planning.pictures import Scaled
from paralab.planning.scale import Fact


def of_layouts(rows: Iterable[Mapping[str, Any]], *, unit: str, share: str, fits: bool) -> Table:
    """Return a line for each layout. rows: as `records.rows` has them. unit: of throughput. share: of the range."""
    columns = (
        Column("#", number=True),
        Column("layout", name_of_row=True),
        Column("micro-batch", number=True, about="Samples of a micro-batch on each data rank"),
        Column("recompute"),
        Column("step", number=True),
        Column(f"{share} range", number=True),
        Column(f"{unit}/s", number=True),
        Column("MFU", number=True),
        Column("bound", about="What most of the time goes into"),
        Column("memory", number=True, about="Of the fullest device"),
        *(Column(name, number=True) for name in CATEGORIES),
    )
    return table("Fastest layouts" if fits else "Closest layouts", columns, [_layout(row, unit) for row in rows])


def _layout(row: Mapping[str, Any], unit: str) -> Sequence[Cell]:
    low, high = (pictures.seconds(row[f"step_time_{end}_s"]) for end in ("low", "high"))
    return (
        Cell(str(row["rank"]), row["rank"]),
        Cell(row["layout"] + " *" * (not row["trained_by_paralab"]), look="name"),
        Cell(str(row["micro_batch_size"]), row["micro_batch_size"]),
        Cell(row["recompute"]),
        Cell(pictures.seconds(row["step_time_s"]), row["step_time_s"]),
        Cell(f"{low} to {high}", row["step_time_low_s"]),
        Cell(f"{row[f'{unit}_per_s']:,.0f}", row[f"{unit}_per_s"]),
        Cell(f"{row['mfu']:.0%}", row["mfu"]),
        Cell(row["bound"]),
        Cell(pictures.gib(row["memory_gib"]), row["memory_gib"], look="" if row["fits"] else "is-failed"),
        *(Cell(pictures.gib(size), size) for size in (row[f"{name.replace(' ', '_')}_gib"] for name in CATEGORIES)),
    )


def of_others(others: Iterable[tuple[str, str, str]]) -> Table:
    """Return a line for each strategy that is not the fastest. others: strategy, its best layout, why it loses."""
    columns = Column("strategy"), Column("its best layout", name_of_row=True), Column("why", wide=True)
    return table("Why the others lose", columns, [(Cell(a), Cell(b, look="name"), Cell(c)) for a, b, c in others])


def of_scaling(scaled: Iterable[Scaled], *, unit: str) -> Table:
    """Return a line for each number of devices, with a batch that stays and with one that grows."""
    columns = (Column("devices", number=True), Column("batch"), Column("fastest layout", name_of_row=True),
               Column("step", number=True), Column(f"{unit}/s", number=True),
               Column(f"{unit}/s of a device", number=True))  # fmt: skip
    rows = [
        (Cell(f"{one.n_gpus:,}", one.n_gpus), Cell("grows with the devices" if one.grows else "stays the same"),
         Cell(one.layout, look="name"), Cell(pictures.seconds(one.step_time_s), one.step_time_s),
         Cell(f"{one.units_per_s:,.0f}", one.units_per_s),
         Cell(f"{one.units_per_s / one.n_gpus:,.0f}", one.units_per_s / one.n_gpus))
        for one in scaled
    ]  # fmt: skip
    return table("Scaling", columns, rows)


def of_facts(title: str, facts: Iterable[Fact]) -> Table:
    """Return a line for each fact of the arithmetic of a training, with its unit and source."""
    columns = (Column("what", name_of_row=True), Column("value", number=True), Column("unit"),
               Column("source", wide=True))  # fmt: skip
    rows = [(Cell(one.name), Cell(report.quantity(one), one.value), Cell(one.unit or UNKNOWN), Cell(one.source))
            for one in facts]  # fmt: skip
    return table(title, columns, rows)


def of_inputs(inputs: Iterable[tuple[str, str, str]]) -> Table:
    """Return a line for each column that the plan was made from. inputs: name, value, where it is from."""
    columns = Column("column", name_of_row=True), Column("value", wide=True), Column("where from")
    return table("What it was predicted from", columns, [[Cell(text) for text in line] for line in inputs])
