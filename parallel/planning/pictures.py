"""The charts of a plan: throughput against memory, memory by category, time by cause, and scaling."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paralab.console.phases import Phases, hidden
from paralab.errors import UsageError
from paralab.pages import charts, scatter
from paralab.pages.charts import Bar, Row
from paralab.pages.limits import Limit
from paralab.pages.lines import Series, lines
from paralab.pages.page import Chart
from paralab.pages.palette import PREDICTED_MEMORY, PREDICTED_STEP, Look, of_strategies
from paralab.pages.scatter import Spot
from paralab.planning import answers, checked, scale
from paralab.planning.breakdown import CATEGORIES
from paralab.planning.hardware import Device
from paralab.planning.search import Found, search
from paralab.planning.solving import counts
from paralab.planning.steptime import BOUNDS

MOST_POINTS = 40  # of a strategy
COMPARED = 8  # layouts of a chart of bars
MOST_COUNTS = 8  # numbers of devices that scaling is drawn for
_GROWS = Look("orange", marker="square", dashed=True)


@dataclass(frozen=True)
class Scaled:
    """The fastest layout on so many devices. grows: whether the batch grows with them."""

    n_gpus: int
    grows: bool
    layout: str
    step_time_s: float
    units_per_s: float


def best_of_families(found: Found) -> list[tuple[str, int]]:
    """Return (strategy, number of its best layout), fastest first; those that do not fit come last."""
    first = [(answers.family(found, found.best), found.best)] if found.n_fit else []
    every = first + [(name, i) for name, i, _ in answers.losers(found)]
    return _sorted(found, every)


def compared(found: Found) -> list[tuple[str, int]]:
    """Return (strategy, number) of the best layout of each strategy, and of the fastest of other degrees."""
    every = best_of_families(found)
    seen = {_degrees(found, i) for _, i in every}
    for i in found.order:
        if len(every) >= COMPARED:
            break
        if _degrees(found, int(i)) not in seen:
            seen.add(_degrees(found, int(i)))
            every.append((answers.family(found, int(i)), int(i)))
    return _sorted(found, every)


def _degrees(found: Found, i: int) -> tuple[int, ...]:
    return tuple(int(found.columns[name][i]) for name in ("dp", "tp", "pp", "cp", "ep"))


def _sorted(found: Found, every: list[tuple[str, int]]) -> list[tuple[str, int]]:
    fits, time = found.prediction.fits, found.prediction.step_time_s
    return sorted(every, key=lambda one: (not fits[one[1]], time[one[1]]))


def against_memory(found: Found, unit: str) -> Chart:
    """Draw throughput against memory: of each strategy the layouts that none of its own beats in both."""
    result, families = found.prediction, answers.families(found.columns)
    rate = scale.units_per_step(found) / result.step_time_s
    there = found.settled.device.memory_gib
    looks = _looks(found)
    spots = []
    for name, _ in best_of_families(found):
        for i in _front(np.flatnonzero(families == name), result.memory_gib, rate, there):
            tip = f"{name}: {answers.name(found, i)}, {answers.row(found, i)['micro_batch_size']} a micro-batch"
            spots.append(Spot(name, float(result.memory_gib[i]), float(rate[i]), looks[name], tip=tip))
    drawing = scatter.scatter(
        spots,
        title="Throughput against memory",
        units=(gib, short),
        names=("memory of the fullest device", f"{unit}/s"),
        limit=Limit(f"memory of {found.settled.device.gpu}", there),
    )
    caption = (
        "Each point is a layout that no other of its strategy beats in both; the dashed steps join those that no other "
        "beats at all, out of all that fit."
    )
    return Chart("Throughput against memory", drawing, caption)


def _looks(found: Found) -> dict[str, Look]:
    return of_strategies((name, name) for name in dict.fromkeys(name for name, _ in compared(found)))


def _front(numbers: np.ndarray, memory: np.ndarray, rate: np.ndarray, there: float) -> list[int]:
    """Return those of some layouts that beat all that need less memory, up to a quarter above what there is."""
    near = numbers[memory[numbers] <= 1.25 * there]
    near = near if len(near) else numbers[np.argsort(memory[numbers])[:1]]
    order = near[np.lexsort((-rate[near], memory[near]))]
    best, chosen = -1.0, []
    for i in order:
        if rate[i] > best:
            best = float(rate[i])
            chosen.append(int(i))
    return chosen[:: -(-len(chosen) // MOST_POINTS)]


def memory(found: Found) -> Chart:
    """Draw what the memory of the fullest device goes into, for the best layout of each strategy and some others."""
    rows = [
        Bar(f"{name}: {answers.name(found, i)}", {kind: float(found.memory_gib[kind][i]) for kind in CATEGORIES})
        for name, i in compared(found)
    ]
    limit = Limit(f"memory of {found.settled.device.gpu}", found.settled.device.memory_gib)
    drawing = charts.bars(rows, looks=PREDICTED_MEMORY, title="Memory of the fullest device", unit=gib, limit=limit)
    caption = (
        "States are weights, gradients and optimizer states; activations are kept for backward; at work are logits or "
        "the layer that runs, what is gathered and buffers; overhead is fragmentation, context and communicators."
    )
    return Chart("Memory of the fullest device", drawing, caption)


def causes(found: Found) -> Chart:
    """Draw what a step goes into, for the best layout of each strategy and some others."""
    rows = [
        Bar(f"{name}: {answers.name(found, i)}", {kind: float(found.causes_s[kind][i]) for kind in BOUNDS})
        for name, i in compared(found)
    ]
    drawing = charts.bars(rows, looks=PREDICTED_STEP, title="Step time by cause", unit=seconds)
    caption = (
        "Of the slowest rank. Compute is matrix products and flash attention; memory, operations that only move bytes; "
        "host, what the device waits for launches; link, communication that nothing hides; bubble, idle in a pipeline."
    )
    return Chart("Step time by cause", drawing, caption)


def ranges(found: Found) -> Chart:
    """Draw the step times with the range in which they were where they were checked."""
    looks, rows = _looks(found), []
    for name, i in compared(found):
        low, high = (float(edge[i]) for edge in found.range_s)
        rows.append(
            Row(
                f"{name}: {answers.name(found, i)}",
                (),
                float(found.prediction.step_time_s[i]),
                (low, high),
                looks[name],
            )
        )
    drawing = charts.dots(rows, title="Step time with its range", unit=seconds)
    share = f"{checked.SHARE:.0%}"
    caption = (
        f"The band holds {share} of what was measured where the planner was checked, on devices of this generation."
    )
    return Chart("Step time with its range", drawing, caption)


def scaling(
    found: Found, raw: Mapping[str, Any], own: Mapping[str, Device] | None, gpu: str, phases: Phases | None = None
) -> list[Scaled]:
    """Return the fastest layout on one node and more of them, with the same batch and with one that grows.

    phases: shows how far it is.
    """
    n, batch = int(found.settled.case.n_gpus), int(found.settled.case.global_batch_size)
    numbers = [count for count in counts(int(found.settled.case.gpus_per_node)) if count < n and n % count == 0]
    numbers = [*numbers[-MOST_COUNTS + 1 :], n]
    scaled: list[Scaled] = []
    phases = phases or hidden()
    phases.begin("looking at fewer devices", total=2 * len(numbers))
    for grows in (False, True):
        for count in numbers:
            phases.advance()
            rows = batch * count // n if grows else batch
            if (rows and batch * count % n == 0) or not grows:
                asked = {**raw, "n_gpus": count, "global_batch_size": rows}
                scaled += _fastest({k: v for k, v in asked.items() if k != "dp"}, grows, own, gpu)
    return scaled


def _fastest(raw: Mapping[str, Any], grows: bool, own: Mapping[str, Device] | None, gpu: str) -> Iterator[Scaled]:
    try:
        found = search(raw, own, gpu)
    except UsageError:
        return
    if found.n_fit:
        i = found.best
        seconds = float(found.prediction.step_time_s[i])
        yield Scaled(int(raw["n_gpus"]), grows, answers.name(found, i), seconds, scale.units_per_step(found) / seconds)


def efficiency(scaled: Sequence[Scaled]) -> Chart | None:
    """Draw throughput of a device over that on the fewest devices; None where only one number of them fits."""
    series = []
    labels = (
        (False, "the global batch stays the same", Look("blue")),
        (True, "the batch grows with the devices", _GROWS),
    )
    for grows, label, look in labels:
        one = [s for s in scaled if s.grows == grows]
        if len(one) > 1:
            alone = one[0].units_per_s / one[0].n_gpus
            series.append(Series(label, [(float(s.n_gpus), s.units_per_s / s.n_gpus / alone) for s in one], look=look))
    if not series:
        return None
    places = sorted({x for one in series for x, _ in one.points})
    series.insert(0, Series("ideal", [(x, 1.0) for x in places], reference=True))
    drawing = lines(
        series, title="Scaling", unit=lambda y: f"{y:.0%}", along="devices", zero=True, every=True, doubling=True
    )
    return Chart("Scaling, predicted", drawing, "Throughput of a device, compared with the fewest that fit.")


def gib(value: float) -> str:
    """Return GiB as text, to three digits."""
    return f"{value:,.0f} GiB" if value >= 100 else f"{value:.3g} GiB"


def seconds(value: float) -> str:
    """Return seconds, or milliseconds where they are few, to three digits."""
    return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"


def short(value: float) -> str:
    """Return a number in the room of a tick: 1.2M, 340k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
