"""The reference of a parity check: the same steps in one process, trained once and sent to the other ranks."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import torch.distributed as dist
from torch import Tensor

from paralab import engines
from paralab.axes.initialise import FirstValues
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.layout import Layout
from paralab.options.config import RunConfig
from paralab.planning.batches import training_batches
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh

# Of Adam, while parity is checked. An element whose true gradient is zero (the bias of an attention key) has only
# rounding noise, which the usual 1e-8 would turn into full steps of either sign.
EPS = 1e-5
STEPS = 3


@dataclass(frozen=True)
class Trace:
    """What a run computed: loss and gradient norm of each step, and the parameters after the last one."""

    losses: list[float]
    grad_norms: list[float]
    parameters: dict[str, Tensor] = field(default_factory=dict)  # canonical name -> full tensor, CPU
    largest_movement: float = 0.0  # of any element of the parameters, over all steps
    start: dict[str, Tensor] = field(default_factory=dict)  # the values before, where they are not drawn by name


def reference_work(work: Work) -> Work:
    """Return the same work for one process in fp32 (fp64 for fp64).

    The whole batch is one micro-batch, unless the model takes statistics over the samples it sees together: then
    the reference sees the same samples together.
    """
    division, statistics = work.division, work.spec.statistics_over(work.model_config)
    accumulation = {"none": 1, "global": division.chunks, "rank": division.chunks * division.dp}[statistics]
    layout = Layout()
    run = replace(
        judged_run(work.run),
        engine="torch",
        ds_config=None,
        layout=layout,
        strategy="single",
        nproc=1,
        accumulation=accumulation,
        precision="fp64" if work.run.precision == "fp64" else "fp32",
        checkpointing="none",
        compile="none",
        grad_compression="none",
        outer_optimizer="average",
        outer_fragments=1,
        outer_overlap=0,
        cast_on_device=False,
    )
    return replace(work, run=run, layout=layout, division=layout.divide(division.global_batch_size, accumulation))


def judged_run(run: RunConfig) -> RunConfig:
    """Return the options that the steps of a parity check are taken with, by the layout and by the reference.

    A warm-up is left out: its first steps are so short that a parameter could stay where it was and nobody would see.
    """
    return replace(run, eps=EPS, lr_warmup_steps=0)


def reference_key(work: Work) -> tuple:
    """Return what two works must share to have the same reference."""
    return work.model_config, reference_work(work).run


Feed = Callable[[Work, Mesh], Iterator[Batch]]  # this rank's batches, step by step


def trace(work: Work, mesh: Mesh, *, steps: int, feed: Feed = training_batches) -> tuple[Engine, Trace]:
    """Train for some steps on this rank; return the engine and its losses and gradient norms.

    Under fp16 a step whose gradients overflow is skipped and the next one is taken with half the loss scale. The
    reference knows no such steps, so training begins anew with the smaller scale until none is skipped.
    """
    work = replace(work, run=judged_run(work.run))
    loss_scale: float | None = None
    while True:
        engine = engines.build(work.context(mesh), work.run.engine, ds_config=work.run.ds_config)
        scale = engine.loss_scale
        if loss_scale is not None:
            scale.value = loss_scale
        began = scale.value if scale.enabled else 1.0
        results = [engine.step(batch) for batch in islice(feed(work, mesh), steps)]
        got = Trace([r.loss.item() for r in results], [r.grad_norm.item() for r in results])
        if began <= 1.0 or all(map(math.isfinite, got.grad_norms)):
            return engine, got
        loss_scale = began / 2


def reference(
    work: Work,
    mesh: Mesh,
    *,
    steps: int = STEPS,
    feed: Feed = training_batches,
    start: Mapping[str, Tensor] | None = None,
) -> Trace:
    """Train the same work in one process, on this rank alone; parameters included.

    start: tensors of whole shapes that parameters begin with, by name, where they are not drawn by name.
    """
    alone = Mesh(Layout(), mesh.device)
    engine, traced = trace(reference_work(work), alone, steps=steps, feed=feed)
    parameters = {name: p.detach().cpu().clone() for name, p in engine.parameters()}
    statistics = {name: buffer.detach().cpu().clone() for name, buffer in global_statistics(engine, work)}
    begin = first_values(work, start or {})
    moved = [(end - begin(name, end)).abs().max().item() for name, end in parameters.items()]
    return replace(traced, parameters=parameters | statistics, largest_movement=max(moved))


def global_statistics(engine: Engine, work: Work) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, running statistics (channels,)) that are those of the global batch on every rank."""
    if work.spec.statistics_over(work.model_config) == "global":
        for part in engine.parts:
            yield from ((name, buffer) for name, buffer in part.named_buffers() if buffer.is_floating_point())


def first_values(work: Work, start: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """Return what gives a whole parameter as every layout begins with it: called with its name, and one of its shape.

    start: the values of whole parameters, by name, where they do not follow from the seed.
    """
    drawn = FirstValues(work.spec, work.model_config, work.run.seed)
    return lambda name, end: start[name].to(end) if name in start else drawn(name, end)


class References:
    """References by what they depend on: trained once, on rank 0, and sent to the other ranks of each mesh size.

    Ranks outside a mesh have not seen its references, so whether to send is decided by the size and not by whether
    rank 0 happens to know.
    """

    def __init__(self) -> None:
        self._trained: dict[tuple, Trace] = {}
        self._shared: dict[tuple, Trace] = {}

    def get(self, work: Work, mesh: Mesh) -> Trace:
        """Return the reference of a work. Collective over the ranks of the mesh."""
        key = reference_key(work)
        shared = (key, mesh.layout.world_size)
        if shared not in self._shared:
            self._shared[shared] = self._share(work, mesh, key)
        return self._shared[shared]

    def _share(self, work: Work, mesh: Mesh, key: tuple) -> Trace:
        alone = mesh.world is None
        traced: list[Trace | None] = [None]
        if alone or dist.get_rank() == 0:
            if key not in self._trained:
                self._trained[key] = reference(work, mesh)
            traced = [self._trained[key]]
        if not alone:
            dist.broadcast_object_list(traced, src=0, group=mesh.world)
        assert traced[0] is not None
        return traced[0]
