"""Save checkpoints, in the background of training."""

from collections.abc import Collection
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from paralab.checkpoint import storage
from paralab.checkpoint.folder import Facts, Kept
from paralab.checkpoint.random import random_chunks
from paralab.checkpoint.same_work import work_of
from paralab.engines.engine import ResumableEngine
from paralab.errors import ConfigError
from paralab.processes.mesh import Mesh

_PLACES = ("out", "resume")  # where a run writes and reads: two that do the same elsewhere save the same bytes
_GRACE_S = 2.0  # for a checkpoint that is being written when a run fails


class Saver:
    """Saves the checkpoints of one run in the background, one at a time. Leaving its `with` waits for the last one.

    Every rank of the world makes one, in the same order (as with `make_mesh`), since saving talks on a process group
    of its own; every rank of the layout saves at the same steps. Older checkpoints are deleted, but for the
    `keep_last` newest ones, those after `keep_steps` steps and, with `keep_best`, the one with the smallest metric.
    timeout_s: how long a rank waits for one that does not answer.

    Raises: ConfigError where none would be kept.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        mesh: Mesh,
        keep_last: int = 3,
        keep_best: bool = True,
        keep_steps: Collection[int] = (),
        timeout_s: float = 1800.0,
    ) -> None:
        if keep_last < 1:
            raise ConfigError(f"keep_last={keep_last}: at least 1 checkpoint must be kept")
        self.folder = Path(folder)
        self.kept = Kept(keep_last, keep_best, frozenset(keep_steps))
        self._group = _background_group(mesh, timeout_s)
        self._pending: tuple[storage.Writer, Future[Any]] | None = None

    def save(self, engine: ResumableEngine, *, metric: float | None = None) -> None:
        """Save the state after `engine.steps_done` steps. Training may go on as soon as this returns.

        metric: a validation loss, for `keep_best`. Raises: DataError when the save before this one failed.
        """
        self.join()
        chunks = engine.state() | random_chunks(engine.context)
        writer = storage.Writer(self.folder, facts=_facts(engine, metric), kept=self.kept)
        self._pending = writer, storage.save(chunks, writer=writer, group=self._group)

    def join(self) -> None:
        """Wait until the last checkpoint is on the disk. Raises: DataError when it could not be saved."""
        if self._pending is None:
            return
        (writer, future), self._pending = self._pending, None
        try:
            future.result()
        except CheckpointException as error:
            raise writer.failed(error) from error

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.join()
        elif self._pending is not None:  # other ranks may be gone: what ended the run must not wait for them
            wait([self._pending[1]], timeout=_GRACE_S)


def save(engine: ResumableEngine, folder: str | Path, *, metric: float | None = None, **keep: Any) -> None:
    """Save one checkpoint into the folder of a run and wait for it. `keep`: options of `Saver`. Collective."""
    with Saver(folder, mesh=engine.context.mesh, **keep) as saver:
        saver.save(engine, metric=metric)


_GROUPS: dict[tuple, dist.ProcessGroup] = {}


def _background_group(mesh: Mesh, timeout_s: float) -> dist.ProcessGroup | None:
    """Return a second group of the same ranks, on the CPU. It is made once and kept."""
    if mesh.world is None:
        return None
    ranks = range(mesh.layout.world_size)
    key = (id(dist.group.WORLD), ranks, timeout_s)
    if key not in _GROUPS:
        _GROUPS[key] = dist.new_group(list(ranks), backend="gloo", timeout=timedelta(seconds=timeout_s))
    return _GROUPS[key]


def _facts(engine: ResumableEngine, metric: float | None) -> Facts:
    return Facts(
        step=engine.steps_done,
        metric=metric,
        work=work_of(engine.context),
        run=_run(engine),
        loss_scale=engine.loss_scale.value,
        good_steps=engine.loss_scale.good_steps,
        torch=torch.__version__,
    )


def _run(engine: ResumableEngine) -> dict[str, Any]:
    run = {name: value for name, value in engine.context.run.to_dict().items() if name not in _PLACES}
    own = engine.context.own
    return run if own is None else run | {"own": own.state(engine.optimizers[0])}
