"""Parity: a layout computes what one process computes, in losses, gradient norms and every parameter.

All three are compared because known faults show in only one of them: a pipeline that scales gradients wrongly
under accumulation (gradient norm), a dropped micro-batch (loss), clipping that forgets an axis or tied
embeddings that drift apart (parameters).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import torch.distributed as dist
from torch import Tensor

from parallel import engines
from parallel.axes.initialise import first_value, local, local_slices
from parallel.axes.spec import Engine
from parallel.data import batches
from parallel.data.dataset import Batch
from parallel.layout import Layout
from parallel.movement import Compared, Measure, by_element, by_projection, by_rms, compare, over_pieces
from parallel.options.config import RunConfig
from parallel.plan.resolve import Work
from parallel.processes.cluster import Mesh

# Of Adam, while parity is checked. An element whose true gradient is zero (the bias of an attention key) has only
# rounding noise, which the usual 1e-8 would turn into full steps of either sign.
EPS = 1e-5
STEPS = 3


@dataclass(frozen=True)
class Tolerance:
    """Largest differences accepted. loss, grad_norm: relative; parameters: of their movement, as in a Certificate."""

    loss: float
    grad_norm: float
    parameters: float


# fp64, fp32: rounding alone. bf16 and fp16 are compared with the fp32 reference: 8 and 11 bits of mantissa. Seen over
# seeds, layouts, optimizers and sizes: parameters differ by 1e-12 of their movement in fp64, 1e-4 in fp32, and up to
# 0.25 in bf16. One that stays where it was differs by 1, and so does one that moves twice as far.
TOLERANCES = {
    "fp64": Tolerance(loss=1e-10, grad_norm=1e-10, parameters=1e-6),
    "fp32": Tolerance(loss=1e-5, grad_norm=1e-5, parameters=1e-2),
    "bf16": Tolerance(loss=1e-2, grad_norm=1e-1, parameters=0.5),
    "fp16": Tolerance(loss=2e-3, grad_norm=5e-2, parameters=0.5),
}
_ROUGH_PARAMETERS = 0.45  # by projection: where ReLUs flip, 0.27 to 1.31 of the reference's movement was seen
# DeepSpeed and Accelerate take the norm by torch, which on a CPU adds squares in fp32 one after another: 5e-4 wrong
# for the 19 million elements of an embedding.
_NORM_OF_OTHERS = 1e-3
# What rounding alone may move, as a share of the largest movement of any element of the model. The first step of Adam
# is g / (|g| + EPS) learning rates: rounding noise of 1e-7 in g makes a hundredth of one. SGD does not enlarge it.
_NOISE = {"adamw": 1e-2, "sgd": 1e-6}


def tolerance(work: Work) -> Tolerance:
    """Return what a work is held to. What cannot be judged exactly is held to that of fp16."""
    precision = work.run.precision
    rough = not work.spec.smooth and precision != "fp64"
    known = TOLERANCES["fp16" if rough and precision == "fp32" else precision]
    if rough:
        known = replace(known, parameters=_ROUGH_PARAMETERS)
    if work.run.engine != "torch" and precision == "fp32":
        known = replace(known, grad_norm=max(known.grad_norm, _NORM_OF_OTHERS))
    return known


def _measure(work: Work) -> Measure:
    """Return how parameters are compared: by element where rounding is all that differs."""
    if work.run.precision == "fp64" or (work.run.precision == "fp32" and work.spec.smooth):
        return by_element
    return by_rms if work.spec.smooth else by_projection


def judged(work: Work) -> Work:
    """Return a work in the precision its parity is best judged in: fp64 in place of fp32 for a model with kinks.

    A ReLU whose input is within rounding of zero flips with the last bit of fp32. DeepSpeed has no fp64.
    """
    by_deepspeed = work.run.engine == "deepspeed" or (
        work.run.engine == "accelerate" and (work.run.ds_config is not None or work.layout.zero == 1)
    )
    if work.spec.smooth or work.run.precision != "fp32" or by_deepspeed:
        return work
    return replace(work, run=replace(work.run, precision="fp64"))


@dataclass(frozen=True)
class Trace:
    """What a run computed: loss and gradient norm of each step, and the parameters after the last one."""

    losses: list[float]
    grad_norms: list[float]
    parameters: dict[str, Tensor] = field(default_factory=dict)  # canonical name -> full tensor, CPU
    largest_movement: float = 0.0  # of any element of the parameters, over all steps


@dataclass(frozen=True)
class Certificate:
    """The largest differences between a layout and one process, and the tolerance they were held to.

    A parameter's difference is measured in what the steps of the reference moved that parameter by, so that one which
    is not updated differs by 1 whatever the learning rate is.
    """

    steps: int
    loss_difference: float  # relative
    grad_norm_difference: float  # relative
    parameter_difference: float  # of the movement in the reference
    worst_parameter: str
    tolerance: Tolerance
    parameters: int = 0  # that were compared, running statistics among them
    unjudged: int = 0  # of them: the reference moves these no further than rounding could
    missing: tuple[str, ...] = ()  # parameters of the reference that no rank has compared
    micro_batches: int = 1  # that the reference takes in turn, where the model has statistics of what it sees together

    @property
    def passed(self) -> bool:
        return (
            self.loss_difference <= self.tolerance.loss
            and self.grad_norm_difference <= self.tolerance.grad_norm
            and self.parameter_difference <= self.tolerance.parameters
            and not self.missing
        )

    def __str__(self) -> str:
        if not self.passed:
            return "FAILED: " + ", ".join(self.failures())
        if self.unjudged and self.unjudged == self.parameters:
            return "passed (the reference moves no parameter further than rounding: all that is shown is that none may)"
        if self.unjudged:
            return f"passed ({self.unjudged} of {self.parameters} parameters move no further than rounding)"
        if self.micro_batches > 1:  # a process that takes the whole batch at once has other statistics
            return f"passed, against one process that accumulates {self.micro_batches} micro-batches"
        return "passed"

    def failures(self) -> Iterator[str]:
        """Yield what is beyond its tolerance, as got and allowed."""
        if not self.loss_difference <= self.tolerance.loss:
            yield f"loss differs by {self.loss_difference:.1e} (allowed {self.tolerance.loss:.0e})"
        if not self.grad_norm_difference <= self.tolerance.grad_norm:
            yield f"gradient norm differs by {self.grad_norm_difference:.1e} (allowed {self.tolerance.grad_norm:.0e})"
        if not self.parameter_difference <= self.tolerance.parameters:
            yield (
                f"{self.worst_parameter} differs by {self.parameter_difference:.1e} of what the steps moved it by "
                f"(allowed {self.tolerance.parameters:.1g})"
            )
        if self.missing:
            yield f"{self.missing[0]} was compared on no rank ({len(self.missing)} parameter(s) were not)"


def reference_work(work: Work) -> Work:
    """Return the same work for one process in fp32 (fp64 for fp64).

    The whole batch is one micro-batch, unless the model takes statistics over the samples it sees together: then
    the reference sees the same samples together.
    """
    division, statistics = work.division, work.spec.batch_statistics(work.model_config)
    accumulation = {"none": 1, "global": division.chunks, "rank": division.chunks * division.dp}[statistics]
    layout = Layout()
    run = replace(
        _judged_run(work.run),
        engine="torch",
        ds_config=None,
        layout=layout,
        strategy="single",
        nproc=1,
        accumulation=accumulation,
        precision="fp64" if work.run.precision == "fp64" else "fp32",
        checkpointing="none",
        compile="none",
        cast_on_device=False,
    )
    return replace(work, run=run, layout=layout, division=layout.divide(division.global_batch_size, accumulation))


def _judged_run(run: RunConfig) -> RunConfig:
    """Return the options that the steps of a parity check are taken with, by the layout and by the reference.

    A warm-up is left out: its first steps are so short that a parameter could stay where it was and nobody would see.
    """
    return replace(run, eps=EPS, lr_warmup_steps=0)


def reference_key(work: Work) -> tuple:
    """Return what two works must share to have the same reference."""
    return work.model_config, reference_work(work).run


def prove(work: Work, mesh: Mesh, want: Trace, *, steps: int = STEPS) -> Certificate:
    """Train a layout for some steps and hold it against the reference. Collective over the ranks of the mesh."""
    engine, got = trace(work, mesh, steps=steps)
    return certify(engine, got, want, work, mesh)


def trace(work: Work, mesh: Mesh, *, steps: int) -> tuple[Engine, Trace]:
    """Train for some steps on this rank; return the engine and its losses and gradient norms.

    Under fp16 a step whose gradients overflow is skipped and the next one is taken with half the loss scale. The
    reference knows no such steps, so training begins anew with the smaller scale until none is skipped.
    """
    work = replace(work, run=_judged_run(work.run))
    loss_scale: float | None = None
    while True:
        engine = engines.build(work.context(mesh), work.run.engine, ds_config=work.run.ds_config)
        scale = getattr(engine, "loss_scale", None)
        if scale is not None and loss_scale is not None:
            scale.value = loss_scale
        began = scale.value if scale is not None and scale.enabled else 1.0
        results = [engine.step(batch) for batch in islice(training_batches(work, mesh), steps)]
        got = Trace([r.loss.item() for r in results], [r.grad_norm.item() for r in results])
        if began <= 1.0 or all(map(math.isfinite, got.grad_norms)):
            return engine, got
        loss_scale = began / 2


def training_batches(work: Work, mesh: Mesh, *, start_step: int = 0) -> Iterator[Batch]:
    """Yield this rank's batches, step by step."""
    run = work.run
    return batches(
        work.dataset(),
        seed=run.seed,
        division=work.division,
        dp_rank=mesh.rank("dp"),
        start_step=start_step,
        workers=run.loader_workers,
        device=mesh.device,
        cast_on_device=run.cast_on_device,
        **work.copies(mesh.device),
    )


def reference(work: Work, mesh: Mesh, *, steps: int = STEPS) -> Trace:
    """Train the same work in one process, on this rank alone; parameters included."""
    alone = Mesh(Layout(), mesh.device)
    engine, traced = trace(reference_work(work), alone, steps=steps)
    parameters = {name: p.detach().cpu().clone() for name, p in engine.parameters()}
    statistics = {name: buffer.detach().cpu().clone() for name, buffer in _statistics(engine, work)}
    movements = ((end - _start(work, name, end)).abs().max().item() for name, end in parameters.items())
    return replace(traced, parameters=parameters | statistics, largest_movement=max(movements))


def _statistics(engine: Engine, work: Work) -> Iterator[tuple[str, Tensor]]:
    """Yield running statistics that are those of the global batch on every rank."""
    if work.spec.batch_statistics(work.model_config) == "global":
        for part in engine.parts:
            yield from ((name, buffer) for name, buffer in part.named_buffers() if buffer.is_floating_point())


def _start(work: Work, name: str, end: Tensor) -> Tensor:
    """Return the whole parameter as every layout begins with it; `end` is the same one after the steps."""
    return first_value(name, like=end, spec=work.spec, config=work.model_config, seed=work.run.seed)


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


def certify(engine: Engine, got: Trace, want: Trace, work: Work, mesh: Mesh) -> Certificate:
    """Compare a traced engine with its reference. Collective over the ranks of the mesh."""
    held_to, steps = tolerance(work), len(got.losses)
    pieces = list(_compare(engine, want, work, steps=steps, tolerance=held_to.parameters))
    if mesh.world is not None:
        every: list = [None] * work.layout.world_size
        dist.all_gather_object(every, pieces, group=mesh.world)
        pieces = [piece for of_rank in every for piece in of_rank]
    differences = over_pieces(pieces, _measure(work))
    missing = want.parameters.keys() - {work.spec.tied.get(name, name) for name in differences}
    worsts = [(difference, name) for name, difference in differences.items()] or [(0.0, "")]
    difference, worst = max(worsts)
    judged = {piece.name for piece in pieces if piece.judged}
    return Certificate(
        steps=steps,
        loss_difference=_largest_relative(got.losses, want.losses[:steps]),
        grad_norm_difference=_largest_relative(got.grad_norms, want.grad_norms[:steps]),
        parameter_difference=difference,
        worst_parameter=worst,
        tolerance=held_to,
        parameters=len(differences),
        unjudged=len(differences.keys() - judged),
        missing=tuple(sorted(missing)),
        micro_batches=reference_work(work).run.accumulation,
    )


def _compare(engine: Engine, want: Trace, work: Work, *, steps: int, tolerance: float) -> Iterator[Compared]:
    """Yield what this rank holds of each parameter, compared with the reference."""
    measure, noise = _measure(work), _NOISE[work.run.optimizer] * want.largest_movement
    for name, parameter in chain(engine.parameters(), _statistics(engine, work)):  # one at a time: some are gathered
        piece = local(parameter.detach()).cpu()
        if piece.numel():
            end = want.parameters[work.spec.tied.get(name, name)]
            yield compare(
                name,
                piece,
                where=local_slices(parameter),
                start=_start(work, name, end),
                end=end,
                noise=noise,
                steps=steps,
                tolerance=tolerance,
                measure=measure,
            )


def _largest_relative(got: list[float], want: list[float]) -> float:
    differences = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(got, want, strict=True)]
    return max((d if d == d else float("inf") for d in differences), default=0.0)
