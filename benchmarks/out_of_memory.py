"""What a rank that ran out of memory would have held, and which option would have made it less.

Nothing is left to look at where a process has run out of memory, or was killed for it. So its step is taken again
without values (`paralab.measure.dry_run`): that needs no memory, and counts what each tensor would have taken, and
where it was made. Options are tried in the same way.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paralab.console.outputs import write_whole
from paralab.console.quantities import size_text
from paralab.errors import ParalabError, UsageError
from paralab.layout import Layout
from paralab.measure import dry_run
from paralab.measure.memory import MemoryReport
from paralab.options.config import RunConfig
from paralab.planning import fit
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import default_backend
from paralab.processes.rank import Rank
from paralab.records.log_files import safe_name
from paralab.records.reading import read

_SAID = 5  # of the places in which most was made


@dataclass(frozen=True)
class Change:
    """An option, as it is typed, and the largest memory of the same rank with it."""

    option: str
    peak_bytes: int


def after(config: RunConfig, out: str, run_id: str) -> list[str]:
    """Return lines about a run, where its row says that it ran out of memory, and leave all of it in a file.

    Raises: UsageError where that file cannot be written.
    """
    row = next((row for row in read(out) if row.run_id == run_id), None) if Path(out).exists() else None
    if row is None or row.status != "oom":
        return []
    rank = row.failed_rank or 0
    try:
        report, changes = looked_at(config, rank)
    except ParalabError as error:
        return [f"what it held is not known: {error}"]
    path = Path(out).with_suffix("") / f"{safe_name(run_id)}.memory.rank{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps({"rank": rank, **asdict(report), "changes": list(map(asdict, changes))}).encode())
    room = fit.room_bytes(resolve(config), Rank.from_env())
    return [*lines(rank, report, changes, room_bytes=room), f"all of it is in {path}"]


def looked_at(config: RunConfig, rank: int) -> tuple[MemoryReport, list[Change]]:
    """Return what a rank holds in a step, and what it would hold with other options, the least first.

    Raises: ConfigError for a run that has no dry run, or LayoutError where a step fails in it.
    """
    work = resolve(config, dry=True)
    report = _report(work, rank)
    tried = [(option, _peak_bytes(work, rank, changed)) for option, changed in _options(work)]
    less = [Change(option, peak) for option, peak in tried if peak is not None and peak < report.peak_bytes]
    return report, sorted(less, key=lambda change: change.peak_bytes)


def _options(work: Work) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the options that keep the step's mathematics: what to type, and what it sets."""
    division, layout = work.division, work.layout
    if work.run.checkpointing == "none":
        yield "--checkpointing full", {"checkpointing": "full"}
    if division.micro_batch_size > 1:
        times = 2 * division.accumulation
        yield f"--accumulation {times}", {"accumulation": times}
    if layout.world_size > 1:
        sharded = Layout(dp=layout.world_size, zero=3)
        if sharded != layout:
            yield f"--layout {sharded}", {"layout": sharded, "strategy": None}


def _peak_bytes(work: Work, rank: int, changed: Mapping[str, Any]) -> int | None:
    """Return the largest memory with other options and the same global batch; None where they are refused."""
    kept = {"global_batch_size": work.division.global_batch_size}
    try:
        return _report(resolve(replace(work.run, **kept | dict(changed)), dry=True), rank).peak_bytes
    except UsageError:
        return None


def _report(work: Work, rank: int) -> MemoryReport:
    return dry_run.of_rank(rank, work, backend=default_backend("cpu")).memory


def lines(rank: int, report: MemoryReport, changes: list[Change], *, room_bytes: int) -> list[str]:
    """Return the lines for a person. room_bytes: that a rank has, now that the run has ended."""
    sizes = sorted(((size, name) for name, size in report.peak.items() if size), reverse=True)
    held = ", ".join(f"{name} {size_text(size)}" for size, name in sizes)
    made = [
        f"  {size_text(one.size_bytes):>9}  {one.count} x {one.category}: {one.made}" for one in report.largest[:_SAID]
    ]
    told = ", ".join(f"{change.option} {size_text(change.peak_bytes)}" for change in changes)
    less = f"with other options it would be: {told}" if told else "no option that was tried makes it less"
    first = f"a step of rank {rank} holds up to {size_text(report.peak_bytes)} of tensors: {held}; made most of all in"
    return [first, *made, less, *_advice(report, changes, room_bytes)]


def _advice(report: MemoryReport, changes: list[Change], room_bytes: int) -> list[str]:
    """Say which option would have made it fit, the one that changes least; nothing where a step fits as it is."""
    if report.peak_bytes <= room_bytes:
        return []
    fitting = [change for change in changes if change.peak_bytes <= room_bytes]
    there = f"the {size_text(room_bytes)} that a rank has"
    return [f"use {fitting[-1].option}: it fits into {there}" if fitting else f"none of them fits into {there}"]
