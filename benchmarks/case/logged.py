"""What a rank writes into its log of a case."""

import json

from paralab.axes.optimizer import learning_rate
from paralab.benchmarks.case.measured import RankResult
from paralab.measure.split import Split
from paralab.planning.work import Work
from paralab.records.log import LogWriter, MemoryRecord, SplitRecord, StepRecord


def write_steps(log: LogWriter, work: Work, result: RankResult) -> None:
    """Write a line for each step, with times of those that were timed."""
    for step, (loss, norm) in enumerate(zip(result.losses, result.grad_norms, strict=True)):
        timed = step - work.run.warmup
        log.write(
            StepRecord(
                step=step,
                loss=loss,
                grad_norm=norm,
                learning_rate=learning_rate(work.run, step),
                step_time_s=result.step_times_s[timed] if timed >= 0 else None,
                data_wait_s=result.data_waits_s[timed] if timed >= 0 else None,
                samples=work.division.global_batch_size,
                measured=timed >= 0,
            )
        )


def write_inside(log: LogWriter, rank: int, result: RankResult, *, bubble_share: float | None) -> None:
    """Write what steps that were not timed have shown: the passes of a pipeline, where time goes, and memory."""
    for span in result.spans:
        log.write(span)
    for split in _splits_of(rank, result, bubble_share=bubble_share):
        log.write(split)
    log.write(_memory_of(rank, result))


def _splits_of(rank: int, result: RankResult, *, bubble_share: float | None) -> list[SplitRecord]:
    return [
        SplitRecord(
            step=step,
            rank=rank,
            compute_s=split.compute_s,
            data_s=split.data_s,
            exposed_s=split.exposed_s,
            host_s=split.host_s,
            parts_json=parts_json(split, bubble_share),
        )
        for step, split in enumerate(result.splits, result.splits_from)
    ]


def parts_json(split: Split, bubble_share: float | None, *, steps: int = 1) -> str:
    """Return the parts of a step, in seconds; of a sum of several, their mean."""
    parts_s = split.parts_s(bubble_share=bubble_share)
    return json.dumps({part: round(s / steps, 6) for part, s in parts_s.items()})


def _memory_of(rank: int, result: RankResult) -> MemoryRecord:
    categories = {f"{category}_bytes": size for category, size in result.memory.items()}
    return MemoryRecord(rank=rank, process_peak_bytes=result.process_peak_bytes, **categories)
