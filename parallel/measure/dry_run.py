"""Build and step every distinct rank of a layout in this process, on tensors without values: a dry run.

What runs is the engine of a real run, on a mesh of `paralab.processes.pretend`: shapes are checked by every operation,
bytes are counted by the ledger and memory by the census. Ranks that hold tensors of the same shapes and do the same
are run once (`Axis.alike`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch._subclasses.fake_tensor import UnsupportedOperatorException as NoShapeOfOperator

from paralab.axes import all_axes
from paralab.axes.blocks import blocks_of
from paralab.axes.initialise import local
from paralab.data.dataset import Batch
from paralab.engines import native
from paralab.errors import ConfigError, LayoutError, ParalabError
from paralab.measure.ledger import CommLedger, CommRow
from paralab.measure.memory import MemoryCensus, MemoryReport
from paralab.models.source_lines import line_of, short
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.processes.pretend import pretended


@dataclass(frozen=True)
class Place:
    """Ranks of a layout that hold and do the same. rank: the first of them. of: axis -> their ranks along it."""

    rank: int
    of: Mapping[str, Sequence[int]]

    @property
    def ranks(self) -> int:
        """How many there are."""
        return prod(map(len, self.of.values()))


@dataclass(frozen=True)
class DryRank:
    """What was found of one distinct rank. layers, parameters: that it holds. comm: of one step.

    Where ranks train apart for several steps, comm is the mean of those.
    """

    place: Place
    layers: int
    parameters: int
    memory: MemoryReport
    comm: list[CommRow]


def check(work: Work) -> None:
    """Raise ConfigError for a run that has no dry run."""
    run = work.run
    if run.engine != "torch":
        raise ConfigError(f"--dry-run with --engine {run.engine}, which makes groups of its own: use --engine torch")
    if run.compile != "none":
        raise ConfigError(f"--dry-run with --compile {run.compile}: what a compiler keeps is not known, leave one out")
    layout = work.layout
    if layout.offload_optimizer or layout.offload_parameters or run.checkpointing == "offload":
        raise ConfigError("--dry-run with offloading: host and device would be one memory in it, leave one of them out")


def places(work: Work) -> list[Place]:
    """Return the distinct ranks of a layout, each with those that it stands for, in the order of their ranks."""
    layout = work.layout
    axes = [axis for axis in all_axes() if axis.name in layout.axes and axis.inside is None]
    groups = [axis.alike(work) for axis in axes]
    found = []
    for chosen in itertools.product(*groups):
        rank = 0
        for axis, group in zip(axes, chosen, strict=True):
            rank = rank * layout.size(axis.name) + group[0]
        found.append(Place(rank, {axis.name: group for axis, group in zip(axes, chosen, strict=True)}))
    return sorted(found, key=lambda place: place.rank)


def dry_run(work: Work, *, backend: str, on_rank: Callable[[], None] = lambda: None) -> list[DryRank]:
    """Return what one step takes on each distinct rank. backend: whose wire bytes are counted. on_rank: after each.

    Raises: ConfigError for a run that has no dry run, or a model that looks at values; LayoutError where a step fails.
    """
    check(work)
    found = []
    for place in places(work):
        found.append(_on(place, work, backend=backend))
        on_rank()
    return found


def of_rank(rank: int, work: Work, *, backend: str) -> DryRank:
    """Return what one step takes on one rank, with the places in which its largest tensors are made.

    Raises: as `dry_run` does.
    """
    check(work)
    return _on(Place(rank, {}), work, backend=backend, places=True)


def _on(place: Place, work: Work, *, backend: str, places: bool = False) -> DryRank:
    try:
        with pretended(work.layout, place.rank) as mesh:
            return _step(place, work, mesh, backend=backend, places=places)
    except ParalabError:
        raise
    except Exception as error:  # of the model's own code, which may raise any
        raise _told(error, place, work) from error


def _step(place: Place, work: Work, mesh: Mesh, *, backend: str, places: bool) -> DryRank:
    engine, steps = native.build(work.context(mesh)), work.layout.local or 1
    with mesh.tensors():
        engine.begin_states()
        with ExitStack() as seeing:
            groups = mesh.groups() if work.layout.world_size > 1 else {}
            ledger = seeing.enter_context(CommLedger(groups, steps=steps, backend=backend))
            watched = MemoryCensus(engine.parts, engine.optimizers, held=engine.held, places=places)
            census = seeing.enter_context(watched)
            for _ in range(steps):  # ranks that train apart meet in the last of them
                engine.step(_batch(work))
    return DryRank(
        place,
        layers=sum(len(blocks_of(part)) for part in engine.parts),
        parameters=sum(local(p).numel() for part in engine.parts for p in part.parameters()),
        memory=census.report(),
        comm=ledger.rows() if groups else [],
    )


def _batch(work: Work) -> Batch:
    """Return a rank's rows of a global batch, of the shapes and dtypes that the model says it takes."""
    rows = work.division.micro_batch_size * work.division.chunks
    inputs, targets = work.spec.example(work.model_config, rows)
    return Batch(inputs, targets)


def _told(error: Exception, place: Place, work: Work) -> ParalabError:
    """Return the error of a step in one line, of the kind that it is."""
    where = line_of(error, work.spec.build, otherwise=work.spec.name)
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return ConfigError(
            f"--dry-run: {where} looks at the values of a tensor ({error}), which a dry run does not have"
        )
    if isinstance(error, NoShapeOfOperator | NotImplementedError):
        return ConfigError(f"--dry-run: {where} uses what a dry run does not know ({short(error)})")
    return LayoutError(f"rank {place.rank} of {work.layout} fails at {where}: {short(error)}")
