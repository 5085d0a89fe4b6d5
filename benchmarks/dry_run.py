"""`paralab run --dry-run`: what one step of every distinct rank holds and sends, as a table and as a row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paralab.axes.held import state_bytes
from paralab.axes.sent import predicted_sent
from paralab.benchmarks.case.communication import comm_columns
from paralab.benchmarks.run import CommandConfig
from paralab.console.clock import Moment
from paralab.console.lines import MOST, paragraph
from paralab.console.phases import Phases
from paralab.console.quantities import GIB, decimals, size_unit
from paralab.errors import DRY, UsageError
from paralab.layout import Layout
from paralab.measure import dry_run
from paralab.measure.categories import MEMORY_CATEGORIES
from paralab.measure.dry_run import DryRank
from paralab.planning import hardware
from paralab.planning.constants import shipped
from paralab.planning.hardware import Device
from paralab.planning.memory import in_use_bytes
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import default_backend
from paralab.processes.rank import Rank
from paralab.records.describe import describe
from paralab.records.of_axes import with_axes
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.writing import append, check_appendable

OUT = "runs/dry.csv"
NOT_THERE = 1  # the exit status where the GPU has less memory
_CPU = torch.device("cpu")


def run(config: CommandConfig) -> int:
    """Dry-run a case, print what was found and append its row. Returns: 0, or 1 where it does not fit the GPU.

    Raises: UsageError for what has no dry run, or a step that fails in it.
    """
    rank = Rank.from_env()
    if rank.world_size > 1:
        raise UsageError(
            f"--dry-run under {rank.launcher}: one process does it for all ranks, type it without a launcher"
        )
    device = hardware.find(config.gpu) if config.gpu else None
    work = resolve(config, dry=True)
    requested = replace(Requested.of(config, rank, group=config.group, repeat=config.repeat), command=work.command)
    out = config.out or OUT
    check_appendable(out)
    backend = config.backend or ("nccl" if device else default_backend(_CPU.type))
    found = _run(work, backend)
    append(out, record(work, requested, rank, found, backend))
    print("\n".join(report(work, found, backend, device)))
    print(f"row {requested.run_id} in {out}")
    return NOT_THERE if device and _in_use_bytes(work, found) > device.memory_gib * GIB else 0


def _run(work: Work, backend: str) -> list[DryRank]:
    dry_run.check(work)
    count = len(dry_run.places(work))
    with Phases(Moment.now(), transient=True) as phases:
        phases.begin(f"one step of {count} distinct rank{'s' * (count > 1)}", total=count)
        return dry_run.dry_run(work, backend=backend, on_rank=phases.advance)


def record(work: Work, requested: Requested, rank: Rank, found: Sequence[DryRank], backend: str) -> RunRecord:
    """Return the row of a dry run: the columns of memory and bytes, and nothing about time."""
    fullest = _fullest(found)
    memory = {f"memory_{category}_bytes": size for category, size in fullest.memory.peak.items()}
    values = describe(work, requested, rank, _CPU) | {
        "status": DRY,
        "launcher": None,
        "nodes": None,
        "backend": backend if work.layout.world_size > 1 else None,
        **memory,
        "memory_tensors_peak_bytes": fullest.memory.peak_bytes,
        "memory_state_peak_bytes": max(one.memory.state_peak_bytes for one in found),
        "predicted_state_bytes": state_bytes(work).total,
        **comm_columns(work, {one.place.rank: one.comm for one in found}, device_type=_CPU.type, backend=backend),
    }
    return RunRecord(**with_axes(values))


def report(work: Work, found: Sequence[DryRank], backend: str, device: Device | None) -> Iterator[str]:
    """Yield the lines for a terminal of 80 columns."""
    run, ranks = work.run, work.layout.world_size
    batch = f"{work.division.global_batch_size:,} samples a step"
    yield f"{work.spec.name} {work.size}, {work.layout}, {run.precision}, {batch}"
    differ = "they hold and do the same" if len(found) == 1 else f"{len(found)} of them differ"
    yield f"{ranks:,} ranks: {differ}" if ranks > 1 else "1 rank"
    yield ""
    yield from _memory_table(found, work.layout)
    if ranks > 1:
        yield ""
        yield from _bytes_table(found, backend)
    yield ""
    yield from _beside_predictions(work, found, backend)
    if device:
        yield from _fit(work, found, device)


def _memory_table(found: Sequence[DryRank], layout: Layout) -> Iterator[str]:
    names = {
        "parameters": "params",
        "gradients": "grads",
        "optimizer": "optim",
        "activations": "activ",
        "buffers": "buffer",
    }
    shown = [c for c in MEMORY_CATEGORIES if any(one.memory.peak[c] for one in found) or c != "other"]
    scale, unit = size_unit(one.memory.peak_bytes for one in found)
    yield f"Memory at the fullest moment, {unit}, and parameters that a rank holds, millions"
    heads = "".join(f"{names.get(c, c):>7}" for c in shown)
    yield f"{'rank':>4} {'like it':>7}  {'place':11}{'layers':>6}{'param.':>7}{heads}{'all':>7}"
    for one in found:
        sizes = "".join(f"{decimals(one.memory.peak[c] / scale, 1):>7}" for c in shown)
        start = f"{one.place.rank:>4} {one.place.ranks:>7,}  {_place(one, layout):11}{one.layers:>6}"
        yield f"{start}{one.parameters / 1e6:>7,.1f}{sizes}{one.memory.peak_bytes / scale:>7,.1f}"


def _place(one: DryRank, layout: Layout) -> str:
    """Return where a rank is along the axes whose ranks differ."""
    several = {axis: ranks for axis, ranks in one.place.of.items() if len(ranks) < layout.size(axis)}
    return " ".join(f"{axis}{_span(ranks)}" for axis, ranks in several.items()) or "any"


def _span(ranks: Sequence[int]) -> str:
    """Return ranks in short: 3, 0-2, or the first of them and how many more."""
    if len(ranks) == 1:
        return str(ranks[0])
    return f"{ranks[0]}-{ranks[-1]}" if ranks[-1] - ranks[0] == len(ranks) - 1 else f"{ranks[0]}+{len(ranks) - 1}"


_NARROW, _SIDES = 11, 14  # characters of a column at least, and of the first and the last one together


def _bytes_table(found: Sequence[DryRank], backend: str) -> Iterator[str]:
    kinds = sorted({(row.axis, row.op) for one in found for row in one.comm if row.wire_bytes})
    scale, unit = size_unit(float(row.wire_bytes) for one in found for row in one.comm)
    yield f"Sent in one step, {unit}, as {backend} does it"
    wide = max([_NARROW, *(1 + len(axis) for axis, _ in kinds)])
    beside = (MOST - _SIDES) // wide
    for start in range(0, len(kinds), beside):
        block = kinds[start : start + beside]
        last = start + beside >= len(kinds)
        for line in range(3):
            words = ((axis, *f"{op}_".split("_")) for axis, op in block)
            heads = "".join(f"{parts[line]:>{wide}}" for parts in words)
            yield f"{'rank' if line == 2 else '':>4} {heads}{'all' if last and line == 2 else '':>9}".rstrip()
        for one in found:
            cells = "".join(f"{decimals(_sent(one, kind) / scale, 2):>{wide}}" for kind in block)
            total = f"{decimals(float(sum(row.wire_bytes for row in one.comm)) / scale, 2):>9}" if last else ""
            yield f"{one.place.rank:>4} {cells}{total}"


def _sent(one: DryRank, kind: tuple[str, str]) -> float:
    return float(sum(row.wire_bytes for row in one.comm if (row.axis, row.op) == kind))


def _beside_predictions(work: Work, found: Sequence[DryRank], backend: str) -> Iterator[str]:
    """Yield what the axes predict in closed form beside what was counted."""
    states, predicted = max(one.memory.state_peak_bytes for one in found), state_bytes(work).total
    scale, unit = size_unit([states])
    yield f"States at most {states / scale:,.1f} {unit}; closed form {predicted / scale:,.1f}"
    if work.layout.world_size > 1:
        busiest = max(found, key=lambda one: sum(row.wire_bytes for row in one.comm))
        counted: dict[str, Any] = {}
        for row in busiest.comm:
            counted[row.axis] = counted.get(row.axis, 0) + row.wire_bytes
        known = predicted_sent(work, busiest.place.of.get("pp", [0])[0], backend=backend).wire_bytes
        yield f"Bytes sent by rank {busiest.place.rank}: {_agreement(counted, known)}"


def _agreement(counted: Mapping[str, Any], predicted: Mapping[str, Any]) -> str:
    other = [axis for axis in predicted if predicted[axis] != counted.get(axis, 0)]
    unknown = [axis for axis in counted if axis not in predicted]
    if other:
        return "; ".join(
            f"{axis} {float(counted.get(axis, 0)):,.0f}, closed form {float(predicted[axis]):,.0f}" for axis in other
        )
    return "equal to their closed form" + (f", which {', '.join(unknown)} does not have here" if unknown else "")


def _fit(work: Work, found: Sequence[DryRank], device: Device) -> Iterator[str]:
    needed = _in_use_bytes(work, found) / GIB
    tensors, there = _fullest(found).memory.peak_bytes / GIB, device.memory_gib
    word = "Fits" if needed <= there else "Does not fit"
    yield paragraph(
        f"{word} {device.gpu}: {tensors:,.1f} GiB of tensors on rank {_fullest(found).place.rank}, {needed:,.1f} with "
        f"what allocator, driver and NCCL usually add, of {there:,.1f}"
    )


def _in_use_bytes(work: Work, found: Sequence[DryRank]) -> float:
    allocated = _fullest(found).memory.peak_bytes
    return float(in_use_bytes(allocated, len(work.layout.axes), shipped()))


def _fullest(found: Sequence[DryRank]) -> DryRank:
    return max(found, key=lambda one: one.memory.peak_bytes)
