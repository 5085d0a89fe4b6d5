"""Output of a training run: lines of metrics, a progress bar on a terminal, and the same metrics for `--log-to`."""

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from paralab.console.outputs import append
from paralab.console.quantities import size_text
from paralab.planning.work import Work
from paralab.records.layers import RMS, by_layer
from paralab.records.log import LayerRecord, TelemetryRecord
from paralab.training.evaluate import Validation
from paralab.training.options import TrainConfig
from paralab.training.sinks import open_sinks


@dataclass(frozen=True)
class Metrics:
    """One line. memory_bytes: peak of the fullest rank, of its GPU or else of its process.

    mfu: share, of a device; None where the run is faster than the peak that was measured.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    units_per_s: float
    unit: str
    mfu: float | None
    memory_bytes: int
    data_wait_share: float

    def line(self, total: int) -> str:
        cells = (
            _at(self.step, total),
            f"loss {self.loss:.4f}",
            f"grad norm {self.grad_norm:.3f}",
            f"lr {self.learning_rate:.2e}",
            f"{self.units_per_s:,.0f} {self.unit}/s",
            f"MFU {self.mfu:.1%}" if self.mfu is not None else "MFU unknown",
            size_text(self.memory_bytes),
            f"data wait {self.data_wait_share:.1%}",
        )
        return "  ".join(cells)


class Screen(Protocol):
    """Where a rank shows what it does."""

    def __enter__(self) -> "Screen": ...
    def __exit__(self, *exception: object) -> None: ...
    def say(self, text: str) -> None: ...
    def begin(self, work: Work, *, step: int, total: int) -> None: ...
    def step(self, done: int) -> None: ...
    def metrics(self, metrics: Metrics) -> None: ...
    def used(self, record: TelemetryRecord) -> None: ...
    def layers(self, records: Sequence[LayerRecord]) -> None: ...
    def validation(self, step: int, found: Validation, *, better: bool) -> None: ...
    def trace(self, step: int, *, wanted: bool) -> AbstractContextManager[Any]: ...
    def end(self, step: int, best: Validation | None, best_step: int | None, *, stopped_by: int | None) -> None: ...


def open_screen(folder: Path, run: TrainConfig, *, shown: bool) -> Screen:
    """Return what rank 0 shows, or what shows nothing."""
    return Shown(folder, run) if shown else Hidden()


class Shown:
    """Prints; keeps held-out losses in validation.jsonl of the run's folder, and traces beside it."""

    def __init__(self, folder: Path, run: TrainConfig) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self.folder, self.run = folder, run
        folder.mkdir(parents=True, exist_ok=True)
        self.console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not sys.stdout.isatty())
        self.sinks = open_sinks(run.log_to or (), folder, run.to_dict())

    def __enter__(self) -> "Shown":
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        for sink in self.sinks:
            sink.close()

    def say(self, text: str) -> None:
        self.console.print(text)
        sys.stdout.flush()

    def begin(self, work: Work, *, step: int, total: int) -> None:
        self.total, run = total, self.run
        self.task = self.bar.add_task("", total=total, completed=step)
        self.say(
            f"{work.spec.name} {work.size}, {work.parameters_text}, on {work.dataset().name}: "
            f"{work.strategy} as {work.layout}, {work.division.global_batch_size} samples a step, {run.precision}"
        )
        if step < total:
            long = "" if run.epochs is None else f": {run.epochs} epochs of {work.dataset().n_samples:,} samples"
            self.say(f"in {self.folder}, from step {step} to {total}{long}")
        else:
            more = f"a --steps above {step}" if run.epochs is None else "more --epochs"
            self.say(f"in {self.folder}, at step {step}: nothing is left to train, give {more}")

    def step(self, done: int) -> None:
        self.bar.update(self.task, completed=done)

    def metrics(self, metrics: Metrics) -> None:
        self.say(metrics.line(self.total))
        skipped = ("step", "unit")
        numbers = {name: x for name, x in asdict(metrics).items() if name not in skipped and x is not None}
        self._write("train", metrics.step, numbers)

    def used(self, record: TelemetryRecord) -> None:
        """Send what this rank uses to --log-to; the log of the rank has it already."""
        numbers = {name: x for name, x in asdict(record).items() if isinstance(x, (int, float))}
        self._write("device", record.step + 1, numbers)

    def layers(self, records: Sequence[LayerRecord]) -> None:
        """Send root mean squares, layer by layer, to --log-to; the log has those of each parameter."""
        for step, layers in by_layer(records).items() if self.sinks else ():
            numbers = {f"{name}/{kind}": x for name, rms in layers.items() for kind, x in zip(RMS, rms, strict=True)}
            self._write("layers", step + 1, numbers)

    def validation(self, step: int, found: Validation, *, better: bool) -> None:
        self.say(f"{_at(step, self.total)}  {found}{'  (best)' if better else ''}")
        line = json.dumps({"step": step, **asdict(found)}) + "\n"
        append(self.folder / "validation.jsonl", line.encode())
        self._write("validation", step, {k: v for k, v in asdict(found).items() if v is not None})

    @contextlib.contextmanager
    def trace(self, step: int, *, wanted: bool) -> Iterator[None]:
        if not wanted:
            yield
            return
        from paralab.measure.trace import profiled_into  # with instruments that only this needs

        file = self.folder / f"trace-step-{step}.json"
        with profiled_into(file):
            yield
        self.say(f"trace of step {step}, for chrome://tracing or ui.perfetto.dev: {file}")

    def end(self, step: int, best: Validation | None, best_step: int | None, *, stopped_by: int | None) -> None:
        if stopped_by:
            name = signal.Signals(stopped_by).name
            folder = shlex.quote(str(self.folder))
            self.say(f"stopped by {name} after step {step}, saved: continue with --resume --out {folder}")
            return
        best_line = f"; the best is step-{best_step}: {best}" if best is not None else ""
        self.say(f"saved in {self.folder}{best_line}")

    def _write(self, group: str, step: int, values: dict[str, float]) -> None:
        for sink in self.sinks:
            sink.write(group, step, values)


class Hidden:
    """Shows nothing."""

    def __enter__(self) -> "Hidden":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def begin(self, work: Work, *, step: int, total: int) -> None:
        pass

    def step(self, done: int) -> None:
        pass

    def metrics(self, metrics: Metrics) -> None:
        pass

    def used(self, record: TelemetryRecord) -> None:
        pass

    def layers(self, records: Sequence[LayerRecord]) -> None:
        pass

    def validation(self, step: int, found: Validation, *, better: bool) -> None:
        pass

    def trace(self, step: int, *, wanted: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def end(self, step: int, best: Validation | None, best_step: int | None, *, stopped_by: int | None) -> None:
        pass


def _at(step: int, total: int) -> str:
    return f"step {step:>{len(str(total))}}/{total}"
