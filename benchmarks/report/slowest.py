"""Words and a drawing for where the time of a step went, and which rank the others waited for."""

import json
from collections.abc import Mapping, Sequence

from paralab.console.quantities import time_text
from paralab.pages import palette
from paralab.pages.charts import Bar
from paralab.pages.marks import LARGEST
from paralab.records.log import SplitRecord
from paralab.records.row import RunRecord

NOTABLY_SLOW = 1.2  # times what the other ranks need themselves
_WORTH_SAYING = 0.005  # of a step
_IN = {
    "compute": "computing",
    "data": "waiting for data",
    "host": "waiting for its host",
    "bubble": "in the bubble",
    "communication": "waiting less for communication than they do",
}


def parts_s(record: RunRecord) -> dict[str, float]:
    """Return the seconds of each part of a step of the slowest rank; empty where a row does not tell them."""
    return _parts(record.step_parts_json)


def _parts(text: str | None) -> dict[str, float]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):  # a cell that was edited
        return {}
    cells = found.items() if isinstance(found, dict) else ()
    return {part: float(s) for part, s in cells if isinstance(s, (int, float)) and 0 <= s < LARGEST}


def name_of(part: str) -> str:
    """Return how people read the name of a part: `comm_dp` is communication over dp."""
    kind, _, axis = part.partition("_")
    if part in _IN:
        return _IN[part]
    return part if kind != "comm" else f"communication over {axis}" if axis else "communication"


def where(parts: Mapping[str, float]) -> str:
    """Return the shares of the parts of a step that are worth saying."""
    whole_s = sum(parts.values()) or 1.0
    return ", ".join(f"{s / whole_s:.0%} {name_of(part)}" for part, s in parts.items() if s / whole_s >= _WORTH_SAYING)


def slowest(record: RunRecord) -> str:
    """Say which rank the others wait for and why, where it is notably slower than they are; else nothing."""
    if record.straggler_ratio is None or record.straggler_ratio <= NOTABLY_SLOW:
        return ""
    ratio = f"{record.straggler_ratio:.1f} times as long as the others"
    if record.slowest_rank is None:  # rows of older versions do not say which
        return f"one rank takes {ratio}"
    times = f"rank {record.slowest_rank} is the slowest: it takes {ratio}"
    if record.slowest_cause is None or record.slowest_behind_s is None:
        return times
    cause = _IN.get(record.slowest_cause, record.slowest_cause)
    return f"{times}, most at step {record.slowest_step}: {time_text(record.slowest_behind_s)} more, {cause}"


def bars(label: str, record: RunRecord, splits: Sequence[SplitRecord], *, most_ranks: int) -> list[Bar]:
    """Return a bar for each rank, of the mean over the steps that were looked at; one for the slowest of too many."""
    ranks = sorted({row.rank for row in splits})
    if not 0 < len(ranks) <= most_ranks:
        known = {name_of(part): s for part, s in parts_s(record).items() if s > 0}
        rank = "" if record.slowest_rank is None else f", rank {record.slowest_rank}"
        return [Bar(f"{label}{rank}", known)] if known else []
    return [Bar(f"rank {rank}", _mean([row for row in splits if row.rank == rank]), group=label) for rank in ranks]


def _mean(rows: Sequence[SplitRecord]) -> dict[str, float]:
    """Return the mean seconds of each part; where a log is older than waiting by axis, of all waiting together."""
    told = [_parts(row.parts_json) for row in rows]
    if all(told):
        sums: dict[str, float] = {}
        for part, s in (cell for parts in told for cell in parts.items()):
            sums[name_of(part)] = sums.get(name_of(part), 0.0) + s
        return {name: s / len(rows) for name, s in sums.items() if s > 0}
    cells = {"compute": "compute_s", "data": "data_s", "host": "host_s", "comm": "exposed_s"}
    means = {name_of(part): sum(getattr(row, cell) or 0.0 for row in rows) / len(rows) for part, cell in cells.items()}
    return {name: mean for name, mean in means.items() if mean > 0}


LOOKS = {name_of(part): look for part, look in palette.STEP.items()}  # by the name that people read
