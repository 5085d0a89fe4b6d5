"""Root mean squares of parameters, gradients and updates, in every N-th step of a training run."""

from collections.abc import Iterator
from contextlib import contextmanager

from paralab.engines.engine import Engine
from paralab.engines.layers import LayerRms, LayerStats
from paralab.engines.native import NativeEngine
from paralab.records.log import LayerRecord


class LayerLog:
    """Measures every N-th step on this rank, and keeps what it found on the device until it is written.

    every: None measures no step. Every rank makes one, and takes the same steps in it.
    """

    def __init__(self, engine: Engine, every: int | None) -> None:
        assert every is None or isinstance(engine, NativeEngine), "refused before processes are started"
        self.stats = LayerStats(engine) if every is not None and isinstance(engine, NativeEngine) else None
        self.every = every or 1
        self.found: list[tuple[int, LayerRms]] = []

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Measure the step that the engine takes within, where it is one to be measured."""
        if self.stats is None or step % self.every:
            yield
            return
        with self.stats.of_a_step():
            yield
        self.found.append((step, self.stats.read()))

    def take(self) -> list[LayerRecord]:
        """Return what was found since the last time, a record for each parameter: the same on all ranks."""
        records = [
            LayerRecord(step=step, name=name, numel=numel, weight_rms=weight, gradient_rms=gradient, update_rms=update)
            for step, rms in self.found
            for name, numel, (weight, gradient, update) in zip(
                rms.names, rms.numels, rms.values.T.tolist(), strict=True
            )
        ]
        self.found = []
        return records
