"""Charts of scaling: throughput per process over the number of processes."""

from collections.abc import Sequence
from itertools import pairwise

from paralab.benchmarks.report import stats, work
from paralab.benchmarks.report.figures import strategy_of
from paralab.benchmarks.report.sources import Source
from paralab.benchmarks.report.work import METHOD, WORK, Column, show, value
from paralab.pages import palette
from paralab.pages.lines import Series, lines
from paralab.pages.page import Chart
from paralab.records.row import RunRecord


def scaling(sources: Sequence[Source]) -> list[Chart]:
    """Return the efficiency of each strategy over the number of processes, wherever there is more than one."""
    good = [record for source in sources for record in source.records if record.status == "ok"]
    good = [record for record in good if record.samples_per_s and record.world_size and record.global_batch_size]
    alike = tuple(column for column in WORK if column.name not in ("world_size", "nodes", "gpu_count"))
    each = tuple(column for column in alike if column.name != "global_batch_size")
    groups = [(runs, "the global batch stays the same") for runs in work.group(good, alike).values()]
    by_share: dict[object, list[RunRecord]] = {}
    for record in good:
        share = (record.global_batch_size or 0) / (record.world_size or 1)
        by_share.setdefault((work.key(record, each), share), []).append(record)
    groups += [(runs, "the batch grows with the processes") for runs in by_share.values()]
    return [chart for runs, how in groups if (chart := _efficiency(runs, how)) is not None]


def _efficiency(runs: Sequence[RunRecord], how: str) -> Chart | None:
    """Draw throughput per process over that of one process; of the fewest processes where one was not run."""
    speeds, strategies = _speeds(runs)
    sizes = sorted({world for places in speeds.values() for world in places})
    if len(sizes) < 2:
        return None
    one = max((stats.median(places[1]) for places in speeds.values() if 1 in places), default=None)
    looks = palette.of_strategies(strategies.items())
    series = [Series("ideal", [(float(world), 1.0) for world in sizes], reference=True)]
    for name, places in speeds.items():
        fewest = min(places)
        ideal = one if one is not None else stats.median(places[fewest]) / fewest
        shares = {float(world): [speed / world / ideal for speed in places[world]] for world in sorted(places)}
        points = [(world, stats.median(found)) for world, found in shares.items()]
        between = {world: interval for world, found in shares.items() if (interval := stats.spread(found))}
        series.append(Series(name, points, look=looks[name], intervals=between))
    drawing = lines(
        series,
        title="Scaling efficiency",
        unit=lambda share: f"{100 * share:.3g}%",
        along="processes",
        zero=True,
        every=True,
        doubling=True,
    )
    first = runs[0]
    link = f"at {first.link_mbit_per_s:g} Mbit/s" if first.link_mbit_per_s else ""
    what = " ".join(filter(None, (first.model, first.size, show(first.precision), (first.device or "").upper(), link)))
    return Chart(f"{what}: {how}", drawing, _caption(first, one is not None, speeds))


def _speeds(runs: Sequence[RunRecord]) -> tuple[dict[str, dict[int, list[float]]], dict[str, str | None]]:
    """Return samples/s of each run of the best layout, by name and number of processes; and the strategy of each."""
    speeds: dict[str, dict[int, list[float]]] = {}
    strategies: dict[str, str | None] = {}
    columns = METHOD[0], METHOD[2]
    engines = {value(run, METHOD[2]) for run in runs}
    for parts in work.group(runs, (*columns, Column("world_size", ""), METHOD[1])).values():
        name = " ".join(show(value(parts[0], column)) for column in columns[: 1 + (len(engines) > 1)])
        places, world = speeds.setdefault(name, {}), parts[0].world_size or 1
        strategies[name] = strategy_of(parts[0])
        found = [run.samples_per_s or 0.0 for run in parts]
        if world not in places or stats.median(found) > stats.median(places[world]):
            places[world] = found
    return speeds, strategies


def _caption(first: RunRecord, from_one: bool, speeds: dict[str, dict[int, list[float]]]) -> str:
    base = "one process" if from_one else "the fewest processes"
    said = [f"Throughput per process over that of {base}."]
    samples = [found for places in speeds.values() for found in places.values() if len(found) > 1]
    if samples:
        names = sorted({stats.spread_name(found) for found in samples})
        said.append(f"Bars are the {' or the '.join(names)} over runs.")
    if any(_skips(sorted(places), speeds) for places in speeds.values()):
        said.append("Dotted: nothing was run in between.")
    if first.device == "cpu" and first.nodes in (None, 1):
        said.append(f"All processes share the {show(first.cores_allowed)} cores of one machine.")
    return " ".join(said)


def _skips(sizes: Sequence[int], speeds: dict[str, dict[int, list[float]]]) -> bool:
    every = {world for places in speeds.values() for world in places}
    return any(b > 2 * a or any(a < world < b for world in every) for a, b in pairwise(sizes))
