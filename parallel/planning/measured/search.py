"""The layouts of a model on a measured device, fastest first. There are few: each is looked at by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from paralab.axes.recompute import attention_of
from paralab.errors import LayoutError, UsageError
from paralab.layout import SCHEDULES, Layout, common_divisors
from paralab.models.configs import ModelConfig
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.planning.candidates import splits
from paralab.planning.measured.cases import PROCESS_BYTES
from paralab.planning.measured.device import MeasuredDevice
from paralab.planning.measured.imagined import Imagined, imagine
from paralab.planning.measured.step import ONE_MACHINE, Cluster, Predicted, predict


@dataclass(frozen=True)
class Choice:
    """A layout, what is expected of it, and whether it fits."""

    plan: Imagined
    predicted: Predicted
    fits: bool


def search(
    spec: ModelSpec,
    config: ModelConfig,
    device: MeasuredDevice,
    *,
    ranks: int,
    batch: int,
    run: RunConfig,
    cluster: Cluster = ONE_MACHINE,
    seen: Callable[[], None] = lambda: None,
) -> list[Choice]:
    """Return all layouts of so many ranks, those that fit first, then the faster ones. seen: called for each.

    Recomputation and accumulation take time and save memory: they are looked at where nothing fits without.
    Raises: LayoutError where no layout is legal.
    """
    found: list[Choice] = []
    for checkpointing, accumulations in (("none", (1,)), ("selective", (1, 2, 4, 8)), ("full", (1, 2, 4, 8))):
        if checkpointing == "selective" and not attention_of(spec.on_meta(config)):
            continue
        for layout in layouts(spec, config, ranks, batch):
            for accumulation in accumulations if not spec.whole_batch else (1,):
                try:
                    one = run_of(run, checkpointing)
                    plan = imagine(spec, config, layout, batch=batch, accumulation=accumulation, run=one)
                except UsageError:
                    continue
                found.append(_choice(plan, device, cluster))
                seen()
        if checkpointing != "selective" and any(choice.fits for choice in found):
            break
    if not found:
        raise LayoutError(
            f"no layout of {ranks} ranks divides {spec.name} and {batch} samples a step: use another number of either"
        )
    return sorted(found, key=lambda choice: (not choice.fits, choice.predicted.step_time_s))


def run_of(run: RunConfig, checkpointing: str) -> RunConfig:
    """Return a run with or without recomputation."""
    return replace(run, checkpointing=checkpointing)


def _choice(plan: Imagined, device: MeasuredDevice, cluster: Cluster) -> Choice:
    predicted = predict(plan, device, cluster)
    processes = min(plan.layout.world_size, cluster.per_node) if device.kind == "cpu" else 1
    used = processes * (predicted.memory.total + PROCESS_BYTES)
    return Choice(plan, predicted, used <= device.memory_gib * 2**30)


def layouts(spec: ModelSpec, config: ModelConfig, ranks: int, batch: int) -> Iterator[Layout]:
    """Yield the layouts of so many ranks that may be legal for a model."""
    blocks = len(spec.blocks(config))
    degrees = [
        (tp, pp, ranks // tp // pp)
        for tp in common_divisors([ranks], most=ranks)
        for pp in common_divisors([ranks // tp], most=min(ranks // tp, max(blocks, 1)))
    ]
    for tp, pp, dp in degrees:
        for zero in (0, 1, 2, 3) if dp > 1 else (0,):
            for sequence in (False, True) if tp > 1 and spec.sequence_parallel else (False,):
                values = {"dp": dp, "tp": tp, "pp": pp, "zero": zero, "sequence_parallel": sequence}
                for more in _schedules(pp, batch // dp, blocks):
                    try:
                        yield Layout(**values, **more)
                    except LayoutError:
                        continue


_CHUNKS = (3, 4, 6, 8)  # stages of a rank beside those that schedules have by themselves


def _schedules(pp: int, rows: int, blocks: int) -> Iterator[dict[str, Any]]:
    """Yield schedules with numbers of micro-batches that rows of a data rank divide into, and uneven ends."""
    if pp == 1:
        yield {}
        return
    chunks = [n for n in _CHUNKS if pp * n <= blocks]
    for name in (
        *SCHEDULES,
        "zero-bubblex1",
        *(f"{name}x{n}" for name in ("interleaved", "zero-bubble") for n in chunks),
    ):
        counts = [1] if name == "naive" else [n for n in (pp, 2 * pp, 4 * pp) if n <= rows and rows % n == 0]
        for n in counts:
            yield {"schedule": name, "micro_batches": n}
            if name == "1f1b":
                yield from ({"schedule": name, "micro_batches": n, **ends} for ends in _ends(blocks, pp))


def _ends(blocks: int, stages: int) -> Iterator[dict[str, int]]:
    """Yield fewer layers for the first and the last stage, which have the embedding and the output layer as well."""
    for split in splits(blocks, stages, 1):
        yield {"first_layers": split[0], "last_layers": split[-1]}
