"""What an axis is: one way of splitting, with everything that is known about it in one place.

An axis says how it cuts modules, what it does after backward, how many copies of a parameter it leaves, which bytes it
sends, which share of memory it holds, what it refuses and which words it adds to a layout. All the rest of the house
asks the list of axes. This module imports no torch, and neither does what an axis says of itself: the code that needs
it is imported when a model is split.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from paralab.layout import Layout
from paralab.layout.words import AxisWords

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from paralab.axes.context import BuildContext, Planned
    from paralab.axes.costs import AxisCost
    from paralab.axes.optimizer import Piece
    from paralab.data.dataset import Batch
    from paralab.layout.schedules import Pass
    from paralab.models.configs import C
    from paralab.models.spec import ModelSpec
    from paralab.processes.mesh import Mesh

    ForwardBackward = Callable[[Batch, float], Tensor]

# The moments of a step, in order: forward and backward passes; what completes the gradients after them; loss and norm
# over all ranks; the update of the parameters.
Moment = Literal["forward", "backward", "gradients", "norm", "update"]
MOMENTS: tuple[Moment, ...] = get_args(Moment)


@dataclass(frozen=True)
class Call:
    """A collective of one module in each micro-batch.

    axis: the axis, or a dim of it. payload_bytes: of one call. backward: whether it belongs to backward. block: the
    number of the block that the module lies in. again: whether a recomputed forward makes the call again; it stops at
    the last tensor that backward needs.
    """

    axis: str
    op: str
    payload_bytes: int
    backward: bool = False
    block: int | None = None
    again: bool = False


@dataclass(frozen=True)
class Transfer:
    """All calls of one collective in a step.

    payload_bytes: of all of them together, a mean where steps differ. calls: how many there are. when: in which moment
    of the step.
    """

    op: str
    ranks: int
    payload_bytes: int | Fraction
    calls: int = 1
    when: Moment = "gradients"


@dataclass(frozen=True)
class Stage:
    """A pipeline stage (or the whole model) as one rank plans it, before it is split or has values.

    part: its modules, whole. received_bytes, sent_bytes: what crosses into it and out of it in one micro-batch.
    shapes: of what a rank holds of each parameter while a block runs, by name.
    """

    index: int
    pp_rank: int
    part: "nn.Module"
    shapes: Mapping[str, tuple[int, ...]]
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True)
class StageMemory:
    """Bytes of the states of a model on one rank, at their peak."""

    parameters: float
    gradients: float
    optimizer: float
    host: float = 0.0  # of all of these, what is kept in the memory of the host in place of the device

    @property
    def total(self) -> int:
        """On the device."""
        return round(self.parameters + self.gradients + self.optimizer)

    @property
    def everywhere(self) -> int:
        """On the device and the host, which on a CPU are one."""
        return self.total + round(self.host)

    def but(self, **bytes_: float) -> "StageMemory":
        """Return the same with other numbers."""
        return replace(self, **bytes_)


@dataclass(frozen=True)
class Unit:
    """Parameters of a stage that are gathered together, and their gradients divided together. names: in the part.

    whole_bytes: of what is gathered. reduced_bytes: of their gradients on the way to the ranks that keep a shard each.
    shard_bytes: of the shard that this rank keeps. stays: whether they are gathered from the beginning of forward until
    their backward pass, and not for each pass anew.
    """

    names: tuple[str, ...]
    whole_bytes: int
    reduced_bytes: int
    shard_bytes: int
    stays: bool


class Software(StrEnum):
    """What an axis has software do on the host beside computing and sending, in forward and backward together.

    `paralab.measure.software` times each: a parameter whose gradient DistributedDataParallel averages; a module that
    FSDP gathers before forward and keeps, or gathers again before backward; a layer of DTensors; a layer that runs on
    the local pieces of DTensors; a stage that a schedule of torch.distributed.pipelining runs.
    """

    REPLICATED_PARAMETER = "replicated parameter"
    KEPT_MODULE = "sharded module, kept"
    SHARDED_MODULE = "sharded module"
    SPLIT_LAYER = "split layer"
    LOCAL_LAYER = "local layer"
    PIPELINE_STAGE = "pipeline stage"


class Finish:
    """What completes the gradients of a step once backward is done: `finish()`.

    duplicates: ids of parameters that another stage counts in the gradient norm. axis: whose it is.
    """

    axis = ""

    def __init__(self, run: Callable[[], None], duplicates: Iterable[int] = ()) -> None:
        self.run, self.duplicates = run, frozenset(duplicates)

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class Updates:
    """What the optimizer of a rank updates, and what follows each update.

    pieces: its pieces. share: called after each update, to bring them to the other ranks. states: what that keeps from
    step to step, of any shape. refresh: called when something else than an update gave the parameters values. agreed:
    makes a context in which parameters are those that ranks last agreed on, where they train apart.
    """

    pieces: "list[Piece]"
    share: Callable[[], None] | None
    states: "Sequence[Tensor]" = ()
    refresh: Callable[[], None] | None = None
    agreed: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


class Axis(AxisWords):
    """One way of splitting. Its defaults are those of an axis whose ranks all hold and do the same.

    Methods are called for the axes that a layout uses (`is_used`), and those that change modules in this order:
    stages, split, [activation checkpointing, compile], wrap, [values], finalise.
    """

    averages = False  # whether its ranks see other samples, so that gradients are averaged over them, last of all
    # whether each of its ranks has a part of the same samples, and takes the mean over that part
    shares_samples = False

    def check_model(self, layout: Layout, spec: "ModelSpec[C]", config: "C") -> None:
        """Raise LayoutError where a model cannot be split this way: what was got, what is needed, what to type.

        By default every model can: for an axis that asks nothing of modules.
        """

    # --- the model, before and after it has values

    def stages(self, context: "BuildContext") -> "dict[int, nn.Module] | None":
        """Return the parts of the model that this rank holds, on the meta device, by stage; None for the whole one."""
        return None

    def split(self, part: "nn.Module", context: "BuildContext") -> None:
        """Split the modules of a part in place, while it is on the meta device.

        By default they stay whole: for an axis whose ranks hold all of each module.
        """

    def casts(self, layout: Layout) -> bool:
        """Return whether `wrap` also makes a part compute in the precision of the run."""
        return False

    def wrap(self, part: "nn.Module", context: "BuildContext") -> None:
        """Wrap a part, in place, after its blocks are recomputed and compiled as the run says.

        By default it stays as it is: for an axis that gathers nothing while modules run.
        """

    def home(self, context: "BuildContext") -> "torch.device | None":
        """Return where a part keeps its values while it does not run; None for the device that it runs on."""
        return None

    def finalise(self, part: "nn.Module", context: "BuildContext") -> None:
        """Finish what had to wait for values; by default nothing had to."""

    # --- a step

    def forward(self, part: "nn.Module", context: "BuildContext") -> "nn.Module | None":
        """Return what runs the forward pass in the place of a part; None for the part itself."""
        return None

    def schedule(self, parts: "Mapping[int, nn.Module]", context: "BuildContext") -> "ForwardBackward | None":
        """Return what runs all forward and backward passes of a step; None where they run one after the other."""
        return None

    def micro_batch(self, model: "nn.Module", *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return what one of several micro-batches runs in, where forward and backward take turns.

        An axis that reduces gradients during backward may put that off until the last one.
        """
        return contextlib.nullcontext()

    def after_backward(self, parts: "Mapping[int, nn.Module]", context: "BuildContext") -> Finish | None:
        """Return what completes the gradients of a step; None where nothing is missing."""
        return None

    def updates(self, parameters: "Sequence[tuple[str, Tensor]]", context: "BuildContext") -> Updates | None:
        """Return what the optimizer of this rank updates; None for every parameter that it holds.

        parameters: with their names, of any shape, sharded ones as DTensors.
        """
        return None

    def copies(self, parameter: "Tensor", mesh: "Mesh") -> int:
        """Return on how many ranks of this axis the same piece of a parameter (of any shape) lies."""
        from paralab.axes.placements import sharded_over

        return mesh.size(self.name) // sharded_over(parameter, {self.name, *self.dims(mesh.layout)})

    def loss_copies(self, layout: Layout) -> int:
        """Return how many ranks of this axis give the same loss to the sum over all ranks, or one to be averaged."""
        return layout.size(self.name)

    # --- what it costs, sends and holds, before anything runs

    def passes(self, plan: "Planned") -> "Sequence[Sequence[Pass]] | None":
        """Return the passes of a step in order, for each rank of this axis; None where all do theirs at once."""
        return None

    def as_seen(self, part: "nn.Module", plan: "Planned") -> None:
        """Have the modules of a part, whole and on the meta device, see activations of the shapes that a rank has.

        For an axis whose ranks have other shapes between the modules, so that no module can be asked alone. By default
        they see what one process would: the shapes of an axis whose ranks have whole samples and sequences.
        """

    def cost(self) -> "AxisCost":
        """Return what the axis adds to the time of a step; by default nothing."""
        from paralab.axes.costs import AxisCost

        return AxisCost()

    def alike(self, plan: "Planned") -> list[list[int]]:
        """Return the ranks of this axis in groups: those of one group hold tensors of equal shapes, and do the same."""
        return [list(range(plan.layout.size(self.name)))]

    def boundary(self, hidden: "Tensor", layout: Layout) -> "Tensor":
        """Return the piece of an activation (batch, ...) that a rank hands to the next pipeline stage."""
        return hidden

    def piece(self, whole: "Tensor", dim: int, rank: int, plan: "Planned") -> "Tensor":
        """Return the piece that a rank has of an activation of any shape, where this axis divides it along a dim."""
        return whole.chunk(plan.layout.size(self.name), dim)[rank]

    def local_shape(self, name: str, shape: tuple[int, ...], plan: "Planned") -> tuple[int, ...]:
        """Return the shape that a rank works with of a parameter, given that of the axes before."""
        return shape

    def calls_before(self, name: str, module: "nn.Module", x: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield what a module communicates about its input x in one micro-batch.

        name: of the module. x: on the meta device, of the shape that the module sees on one rank.
        """
        yield from ()

    def calls_after(self, name: str, module: "nn.Module", out: "Tensor", plan: "Planned") -> Iterator[Call]:
        """Yield what a module communicates about its output in one micro-batch.

        name: of the module. out: on the meta device, of the shape that the module gives on one rank.
        """
        yield from ()

    def sent(self, stage: Stage, plan: "Planned") -> Iterator[tuple[str, Transfer]]:
        """Yield what a rank communicates about a stage once a step: (axis or dim, calls). Equals the ledger exactly."""
        yield from ()

    def software(self, stage: Stage, plan: "Planned") -> Iterator[tuple[Software, int]]:
        """Yield what software does on the host for a stage, and how often in one micro-batch."""
        yield from ()

    def copied(self, stage: Stage, plan: "Planned") -> Iterator[int]:
        """Yield the bytes that a rank copies for a stage in a step: into what it sends, and out of what it gets."""
        yield from ()

    def updating(self, name: str, plan: "Planned") -> int:
        """Return the ranks of this axis that divide the update of the parameter of a name by its rows: 1 for none."""
        return 1

    def received(self, stage: Stage, plan: "Planned") -> int:
        """Return the bytes of the buffers that a stage keeps during its passes for what it receives."""
        return 0

    def gathered(self, stage: Stage, plan: "Planned") -> Sequence[Unit]:
        """Return the parameters of a stage that a rank holds shards of, and gathers while modules run."""
        return ()

    def finishing(self, stage: Stage, plan: "Planned") -> int:
        """Return the bytes that it takes beside the gradients of a stage to complete them, once backward is done."""
        return 0

    def held(
        self, memory: StageMemory, stages: Sequence[Mapping[str, tuple[int, ...]]], plan: "Planned"
    ) -> StageMemory:
        """Return the states that a rank holds, given those it would hold without this axis.

        stages: of each of its stages the shapes that the rank works with of parameters that are trained, by name.
        """
        return memory
