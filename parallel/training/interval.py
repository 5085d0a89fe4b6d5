"""The steps between two lines of metrics: taken, then read, checked, logged and shown."""

import math
import time
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from paralab.axes.optimizer import learning_rate
from paralab.engines.engine import StepResult
from paralab.errors import DivergedError
from paralab.measure import memory
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.records.log import MemoryRecord, StepRecord
from paralab.training.screen import Metrics

if TYPE_CHECKING:
    from paralab.training.loop import Training


class Interval:
    """The steps up to the next line of metrics. Losses stay on the device until then: nothing waits for them."""

    def __init__(self, training: "Training") -> None:
        self.training = training
        self.results: list[StepResult] = []
        self.waits_s: list[float] = []
        self.began_s = time.perf_counter()

    def take(self, step: int, batches: Iterator) -> None:
        training, wanted = self.training, self.training.options.profile_step
        waited = time.perf_counter()
        batch = next(batches)
        self.waits_s.append(time.perf_counter() - waited)
        with training.screen.trace(step, wanted=step == wanted), training.layers.around(step):
            self.results.append(training.engine.step(batch))
        training.meter.step_taken()

    def close(self) -> None:
        """Read the losses, check them, log each step and show a line."""
        training, run, work = self.training, self.training.options, self.training.work
        outcome, first = training.outcome, training.outcome.step - len(self.results)
        losses, norms = torch.stack([torch.stack([x.loss, x.grad_norm]) for x in self.results]).T.tolist()
        taken_s = time.perf_counter() - self.began_s
        layers = training.layers.take()  # equal on all ranks
        for layer in layers if training.is_main else ():
            training.log.write(layer)
        training.screen.layers(layers)
        if record := training.meter.read(outcome.step - 1, log=training.usage_log):
            training.screen.used(record)
        for step, loss, norm, wait_s in zip(count(first), losses, norms, self.waits_s, strict=False):
            training.progress.step = step
            training.log.write(
                StepRecord(
                    step=step,
                    loss=loss,
                    grad_norm=norm,
                    learning_rate=learning_rate(run, step),
                    step_time_s=taken_s / len(losses),  # mean of the interval
                    data_wait_s=wait_s,
                    samples=work.division.global_batch_size,
                    measured=step >= run.warmup,
                )
            )
            check_finite(step, loss, norm, work)
        outcome.first_loss = losses[0] if outcome.first_loss is None else outcome.first_loss
        outcome.last_loss, outcome.last_grad_norm = losses[-1], norms[-1]
        outcome.steps += len(losses)
        outcome.steps_s += taken_s
        outcome.waits_s += sum(self.waits_s)
        on_device, in_process = memory.device_peak_bytes(training.mesh.device)[0], memory.process_peak_bytes()
        training.usage_log.write(
            MemoryRecord(rank=training.rank.rank, process_peak_bytes=in_process, device_peak_bytes=on_device)
        )
        used_bytes, waits_s = largest(training.mesh, [float(on_device or in_process or 0), sum(self.waits_s)])
        training.screen.metrics(
            Metrics(
                step=outcome.step,
                loss=losses[-1],
                grad_norm=norms[-1],
                learning_rate=learning_rate(run, outcome.step - 1),
                units_per_s=_units_per_s(work, len(losses) / taken_s),
                unit=work.spec.unit_of(work.model_config),
                mfu=training.mfu(len(losses) / taken_s),
                memory_bytes=int(used_bytes),
                data_wait_share=waits_s / taken_s,
            )
        )


def check_finite(step: int, loss: float, norm: float, work: Work) -> None:
    """Raise DivergedError naming the batch. With fp16 an overflowing gradient is normal: the step was skipped."""
    skipped = work.run.precision == "fp16"
    if math.isfinite(loss) and (math.isfinite(norm) or skipped):
        return
    size = work.division.global_batch_size
    raise DivergedError(
        f"loss {loss}, gradient norm {norm} at step {step}, whose batch is samples {step * size} to "
        f"{(step + 1) * size - 1} of the order of seed {work.run.seed}: lower --learning-rate, or use --precision fp32"
    )


def largest(mesh: Mesh, values: list[float]) -> list[float]:
    """Return the largest of each value over the ranks."""
    if mesh.world is None:
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=mesh.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=mesh.world)
    return largest.tolist()


def _units_per_s(work: Work, steps_per_s: float) -> float:
    return steps_per_s * work.division.global_batch_size * work.spec.units_in_sample(work.model_config)
