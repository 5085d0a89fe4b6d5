"""Options of one device that can be varied one at a time, and what each changes in a run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, get_args

from paralab.benchmarks.run import CaseConfig
from paralab.errors import UsageError
from paralab.options.choices import CompileMode
from paralab.processes.allowed import memory_allowed_bytes
from paralab.records.row import RunRecord

BATCH = "batch"  # doubled until it does not fit
SMALLEST_BATCH = 8
# What each of the others tries, against the case without it. Values are those of options.
CHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "workers": ({"loader_workers": 1}, {"loader_workers": 2}),
    "pinned": ({"pin_memory": True, "non_blocking": True}, {"pin_memory": False, "non_blocking": False}),
    "casting": ({"cast_on_device": True},),
    "precision": ({"precision": "bf16"},),
    "channels-last": ({"channels_last": True},),
    "compile": tuple({"compile": mode} for mode in get_args(CompileMode) if mode != "none"),
    "checkpointing": ({"checkpointing": "full"}, {"checkpointing": "2"}),
    "accumulation": ({"accumulation": 2}, {"accumulation": 4}),
}
NAMES = (BATCH, *CHANGES)
Named = tuple[str, CaseConfig]


def cases(base: CaseConfig, names: Sequence[str]) -> Iterator[Named]:
    """Yield the case itself, then the case with each change of each option but `batch`; what cannot run is said."""
    import torch

    yield "as it is", base
    for change in (change for name in names if name != BATCH for change in CHANGES[name]):
        if "cast_on_device" in change and not (base.loader_workers or torch.accelerator.is_available()):
            change = change | {"loader_workers": 1}  # without a GPU only they gain from it
        name = ", ".join(f"{key} {value}" for key, value in change.items())
        if case := _changed(base, name, **change):
            yield name, case


def batches(base: CaseConfig, run: Callable[[Named], RunRecord], *, time_limit_s: float) -> Iterator[Named]:
    """Run batches of 8, 16, 32 ... samples and yield those that fit, until the next one would not.

    The first is the smallest of at least 8 that the division takes. Memory is taken to grow with the batch as it did
    in the last step; parity is left out, whose reference needs more. The reason for ending is printed.
    """
    from paralab.planning.resolve import resolve

    division = resolve(replace(base, global_batch_size=None)).division
    parts = division.dp * division.chunks
    smallest = -(-SMALLEST_BATCH // parts) * parts
    before: RunRecord | None = None
    for batch in (smallest << n for n in count()):
        case = replace(base, global_batch_size=batch, parity=False)
        row = run((f"batch {batch}", case))
        if row.status != "ok":
            print(f"batch {batch} did not run: {row.status}, {row.reason}")
            return
        yield f"batch {batch}", case
        if reason := _reason_to_end(row, before, time_limit_s=time_limit_s):
            print(f"no batch above {batch}: {reason}")
            return
        before = row


def _reason_to_end(row: RunRecord, before: RunRecord | None, *, time_limit_s: float) -> str | None:
    """Return why twice the batch is not tried, None where it is."""
    if row.wall_s is not None and 2 * row.wall_s > time_limit_s:
        return f"twice as many would take about {2 * row.wall_s:.0f} s, more than --time-limit-s {time_limit_s:g}"
    used, limit = _memory_bytes(row), _memory_limit_bytes(row)
    if used is None or limit is None or before is None or (used_before := _memory_bytes(before)) is None:
        return None
    needed = used + 2 * max(0, used - used_before)
    if needed > limit:
        return f"twice as many would take about {needed / 2**30:.1f} GiB, there are {limit / 2**30:.1f}"
    return None


def _memory_bytes(row: RunRecord) -> int | None:
    """Return what a run used: of one GPU, or of all processes together."""
    if row.device == "cuda":
        return row.gpu_reserved_peak_bytes
    return row.process_peak_bytes * (row.world_size or 1) if row.process_peak_bytes is not None else None


def _memory_limit_bytes(row: RunRecord) -> int | None:
    if row.device != "cuda":
        return memory_allowed_bytes()
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _changed(base: CaseConfig, name: str, **change: Any) -> CaseConfig | None:
    try:
        case = replace(base, **change)
        same = _realised(case) == _realised(base)
    except UsageError as error:
        print(f"{name} left out: {error}")
        return None
    return None if same else case


def _realised(case: CaseConfig) -> dict[str, Any]:
    """Return the options of a case with nothing left open."""
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank

    work = resolve(case)
    return vars(work.run) | work.copies(Rank.from_env().device)
