"""Find where a layout first computes something else than one process: after a parity check has failed, never before.

The layout takes the same steps once more, and every rank notes what each module got and gave, the gradients of these,
each parameter's gradient after each axis has completed it, and each update. Rank 0 takes the steps in one process
beside that (`paralab.parity.beside`), and what is wrong first in the order of one process is named.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
import torch.distributed as dist

from paralab import engines
from paralab.axes.held import state_bytes, state_bytes_of_all
from paralab.data.dataset import Batch
from paralab.engines.native import NativeEngine
from paralab.layout import Layout
from paralab.options.choices import Precision
from paralab.parity.beside import FORWARD, Beside, Pair
from paralab.parity.listening import Spot
from paralab.parity.naming import say
from paralab.parity.notes import Notes, Watched
from paralab.parity.reference import Feed, judged_run, reference_work
from paralab.parity.scope import activation_bytes
from paralab.planning.work import Work
from paralab.processes.allowed import memory_available_bytes
from paralab.processes.mesh import Mesh

# Of a difference to the size of what the reference has: far above rounding, far below what a fault makes of a tensor.
WITHIN: dict[Precision, float] = {"fp64": 1e-9, "fp32": 1e-3, "bf16": 0.2, "fp16": 0.1}
# What is smaller than this share of the largest of its kind (a gradient that is zero but for rounding) is as large.
_LEAST: dict[Precision, float] = {"fp64": 1e-3, "fp32": 0.1, "bf16": 0.1, "fp16": 0.1}
_FP16_SCALE = 1024.0  # small enough that no step is skipped


def first_difference(work: Work, mesh: Mesh, *, feed: Feed, steps: int) -> str:
    """Return what a layout first computes otherwise, in a sentence; or why it was not searched. Collective.

    Looked for in fp64, where nothing hides it; then in the precision that was judged.
    """
    if work.run.engine != "torch":
        return f"first difference not searched: {work.run.engine} takes steps of its own"
    lacking, looked = "", list[str]()
    for precision in dict.fromkeys(("fp64", work.run.precision)):
        part = replace(work, run=replace(judged_run(work.run), precision=precision, compile="none"))
        if lacking := _from_main(_lacks_memory(part, mesh) if _is_main(mesh) else "", mesh):
            continue
        if found := _search(part, mesh, feed=feed, steps=steps):
            return found
        looked.append(precision)
    if not looked:
        return f"first difference not searched: {lacking}"
    without = ", without torch.compile" if work.run.compile != "none" else ""
    said = f"first difference not found: the same {steps} steps once more, in {' and '.join(looked)}{without}, agree"
    if without or work.spec.is_built_in or work.division.dp * work.division.chunks == 1:
        return said
    return (
        f"{said} with one process that takes the batch in the same parts: look for a loss that is not the mean over "
        "its samples, and for statistics over a batch"
    )


def _search(work: Work, mesh: Mesh, *, feed: Feed, steps: int) -> str:
    engine = engines.build(work.context(mesh), "torch")
    assert isinstance(engine, NativeEngine)
    if engine.loss_scale.enabled:
        engine.loss_scale.value = _FP16_SCALE
    watched, alone = Watched(engine), Mesh(Layout(), mesh.device)
    beside = Beside(work, mesh.device) if _is_main(mesh) else None
    whole = feed(reference_work(work), alone) if beside is not None else iter(())
    for step, rows in enumerate(islice(feed(work, mesh), steps)):
        every = _to_main(watched.step(rows), mesh)
        found = ""
        if beside is not None:
            found = _compared(beside, next(whole), every, work, f"step {step + 1} of {steps}")
        if found := _from_main(found, mesh):
            return found
    return ""


def _compared(beside: Beside, batch: Batch, notes: list[Notes], work: Work, step: str) -> str:
    try:
        pairs = beside.step(batch, notes)
    except Exception as error:  # the result stands without it, and the other ranks wait to be told
        said = " ".join(str(error).split())[:160]
        return f"first difference not found: the search for it ended with {type(error).__name__}: {said}"
    narrow = beside.narrowed.seen and work.run.precision == "fp64"  # parts that the model itself computes in fp32
    wrong = list(_wrong(pairs, "fp32" if narrow else work.run.precision))
    if not wrong:
        return ""
    return say(wrong, beside, notes, pairs, f"{step}, in {work.run.precision}")


def _wrong(pairs: list[Pair], precision: Precision) -> Iterator[tuple[Pair, float]]:
    """Yield what differs first, of every rank and micro-batch, with its share of the size of the tensor."""
    largest: dict[str, float] = {}
    for pair in pairs:
        largest[pair.kind] = max(pair.size, largest.get(pair.kind, 0.0))
    found: list[tuple[Pair, float]] = []
    unused = _unused(pairs)
    for pair in pairs:
        if pair.phase == FORWARD and (pair.rank, pair.micro_batch, pair.about) in unused:
            continue
        size = max(pair.size, _LEAST[precision] * largest[pair.kind])
        ratio = 0.0 if pair.gap == 0 else pair.gap / size if size else float("inf")
        if not ratio <= WITHIN[precision]:
            found.append((pair, ratio))
    first = min(((pair.phase, pair.place) for pair, _ in found), default=None)
    yield from ((pair, ratio) for pair, ratio in found if (pair.phase, pair.place) == first)


def _unused(pairs: list[Pair]) -> set[tuple[int, int | None, Spot]]:
    """Return the inputs, by rank and micro-batch, of modules whose outputs agree to the last bit: of no consequence.

    A table of angles of transformers is handed hidden states for their dtype alone, in a pipeline those of its stage.
    """
    outputs: dict[tuple[int, int | None, Spot], float] = {}
    forward = [(pair, pair.about) for pair in pairs if pair.phase == FORWARD and isinstance(pair.about, Spot)]
    for pair, spot in forward:
        if spot.side == "output":
            at = (pair.rank, pair.micro_batch, spot._replace(leaf=0))
            outputs[at] = max(pair.gap, outputs.get(at, 0.0))
    inputs = [(pair.rank, pair.micro_batch, spot) for pair, spot in forward if spot.side == "input"]
    same = [(rank, batch, spot._replace(side="output", leaf=0)) for rank, batch, spot in inputs]
    return {at for at, output in zip(inputs, same, strict=True) if outputs.get(output) == 0}


def _lacks_memory(work: Work, mesh: Mesh) -> str:
    """Return what is missing for the whole model in one process beside this rank's part of it; "" where it fits.

    All ranks are taken to be on this machine.
    """
    alone = reference_work(work)
    needed = state_bytes_of_all(alone)
    if work.context(mesh).own is None:  # else no example may be known
        together = work.spec.statistics_over(work.model_config) == "global"
        needed += activation_bytes(alone if together else replace(alone, division=work.division))
    if mesh.device.type == "cpu":
        needed, free = needed + state_bytes_of_all(work), memory_available_bytes()
    else:
        needed, free = needed + state_bytes(work).total, torch.cuda.mem_get_info(mesh.device)[0]
    if needed <= free:
        return ""
    return f"one process beside the layout takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"


def _is_main(mesh: Mesh) -> bool:
    return mesh.world is None or dist.get_rank(mesh.world) == 0


def _to_main(notes: Notes, mesh: Mesh) -> list[Notes]:
    """Return the notes of all ranks on rank 0, none on others."""
    if mesh.world is None:
        return [notes]
    every: list | None = [None] * mesh.layout.world_size if _is_main(mesh) else None
    dist.gather_object(notes, every, group=mesh.world, group_dst=0)
    return every or []


def _from_main(said: str, mesh: Mesh) -> str:
    box = [said]
    if mesh.world is not None:
        dist.broadcast_object_list(box, group=mesh.world, group_src=0)
    return box[0]
