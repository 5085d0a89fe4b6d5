"""The steps of a case that warm up, and those that are timed."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from paralab.benchmarks.case.measured import RankResult
from paralab.benchmarks.report import to_loss
from paralab.console.phases import Phases
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine, StepResult
from paralab.errors import DivergedError
from paralab.measure.nvml import cuda_uuid
from paralab.measure.telemetry import Sampler
from paralab.planning.work import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh


def warm_up(
    engine: Engine, batches: Iterator[Batch], steps: int, result: RankResult, progress: Progress, phases: Phases
) -> None:
    """Take the first steps of a case. Raises: DivergedError."""
    if steps:
        phases.begin(f"warming up: {steps} steps", total=steps)
    for step in range(steps):
        progress.step = step
        _take_step(engine, batches, result, step)
        phases.advance()


def _take_step(engine: Engine, batches: Iterator[Batch], result: RankResult, step: int) -> None:
    began_s = time.perf_counter()
    got = engine.step(next(batches))
    result.losses.append(got.loss.item())
    result.grad_norms.append(got.grad_norm.item())
    result.warmup_times_s.append(time.perf_counter() - began_s)
    _check_finite(result, step)


def reaches(target: float | None, losses: list[float]) -> Callable[[StepResult], bool]:
    """Return what says after a step whether a loss is reached; losses: of the steps before, which it goes on with.

    It waits for the loss of each step, which is equal on all ranks: they end in the same step.
    """

    def is_last(got: StepResult) -> bool:
        if target is None:
            return False
        losses.append(got.loss.item())
        return to_loss.steps_to(losses, target) is not None

    return is_last


def _check_finite(result: RankResult, step: int) -> None:
    if not math.isfinite(result.losses[-1]) or not math.isfinite(result.grad_norms[-1]):
        raise DivergedError(
            f"loss {result.losses[-1]}, gradient norm {result.grad_norms[-1]} at step {step}: "
            "lower --learning-rate, or use --precision fp32"
        )


def timed_steps(
    engine: Engine,
    batches: Iterator[Batch],
    work: Work,
    mesh: Mesh,
    result: RankResult,
    progress: Progress,
    on_step: Callable[[], None] = lambda: None,
    is_last: Callable[[StepResult], bool] = lambda got: False,
) -> None:
    """Run the measured steps, up to one that is the last. Losses stay on the device until the window ends."""
    cuda = mesh.device.type == "cuda"
    sampler = Sampler(gpu_uuid=cuda_uuid(mesh.device.index) if cuda else None)
    got, marks = [], []
    if mesh.world is not None:
        dist.barrier(group=mesh.world)
    sampler.start_window()
    start = _now(cuda)
    for step in range(len(result.losses), len(result.losses) + work.run.steps):
        progress.step = step
        waited = time.perf_counter()
        batch = next(batches)
        result.data_waits_s.append(time.perf_counter() - waited)
        got.append(engine.step(batch))
        marks.append(_now(cuda))
        on_step()
        if is_last(got[-1]):
            break
    if cuda:
        torch.cuda.synchronize()
    result.telemetry = sampler.stop_window()
    result.step_times_s = [_seconds(a, b) for a, b in zip([start, *marks[:-1]], marks, strict=True)]
    for step_result in got:
        result.losses.append(step_result.loss.item())
        result.grad_norms.append(step_result.grad_norm.item())
        _check_finite(result, len(result.losses) - 1)


def _now(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(a: Any, b: Any) -> float:
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1e3
