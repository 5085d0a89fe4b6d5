"""One step of a layout as `paralab explain` draws it: what each rank holds, sends and waits for.

All of it is what the axes say of themselves: bytes by moment (`sent`, `calls_before`, `calls_after`), states (`held`),
the order of passes (`passes`) and the dims of the mesh. An axis of the user's own is drawn as those that are built in.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import prod

from paralab.axes import all_axes
from paralab.axes.axis import Moment
from paralab.axes.forms import wire_bytes
from paralab.axes.held import state_bytes_of
from paralab.axes.sent import noted_stages, predicted_transfers
from paralab.console.clock import Moment as Now
from paralab.console.phases import Phases
from paralab.errors import ConfigError, LayoutError
from paralab.layout import Layout
from paralab.measure.dry_run import DryRank, dry_run, places
from paralab.measure.timeline import PlannedPass, bubble_theory_share, planned
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.planning.work import Work

MOST_LANES = 8  # ranks that are drawn

# What a rank holds, and when in a step.
HELD = {
    "weights": "all the time",
    "gradients": "backward to update",
    "optimizer": "all the time",
    "on the host": "not on the device",
    "activations": "forward to backward",
    "buffers": "while they are used",
    "most at once": "",
}
Held = Mapping[str, float]  # bytes by name; what is not known is not there


@dataclass(frozen=True)
class Lane:
    """One rank. place: where it is along each axis that is divided. dims: along each dim of the mesh.

    rows: of the global batch that it trains on.
    """

    rank: int
    place: Mapping[str, int]
    dims: Mapping[str, int]
    rows: Sequence[int]
    held: Held


@dataclass(frozen=True)
class Sending:
    """All calls of one collective along one axis in one moment of a step.

    groups: the lanes that take part together, by their numbers. sent: bytes that leave each lane. calls: the most that
    a lane makes.
    """

    when: Moment
    axis: str
    op: str
    groups: Sequence[Sequence[int]]
    sent: Sequence[Fraction]
    calls: int

    @property
    def one_way(self) -> bool:
        """Whether the sender goes on at once, and only the receiver waits."""
        return self.op == "send"


@dataclass(frozen=True)
class Passes:
    """The passes of the ranks of an axis that wait for each other. lost: the share of a step in which a rank waits."""

    axis: str
    ranks: Sequence[Sequence[PlannedPass]]
    lost: float


@dataclass(frozen=True)
class Explained:
    """A step of some ranks. alone: what one process would hold. lacking: why there was no dry run, else nothing."""

    work: Work
    lanes: Sequence[Lane]
    alone: Held
    sendings: Sequence[Sending]
    passes: Sequence[Passes]
    backend: str
    lacking: str

    @property
    def title(self) -> str:
        work = self.work
        return f"{work.spec.name} {work.size}, {work.layout}, {work.run.precision}"

    @property
    def subtitle(self) -> str:
        work, ranks = self.work, self.work.layout.world_size
        drawn = "" if len(self.lanes) == ranks else f", of which {len(self.lanes)} are drawn"
        samples = f"{work.division.global_batch_size:,} samples a step"
        return f"{work.parameters_text}, {samples}, {ranks:,} rank{'s' * (ranks > 1)}{drawn}"

    def at(self, when: Moment) -> list[Sending]:
        """Return what is sent in a moment."""
        return [sending for sending in self.sendings if sending.when == when]


def explained(config: RunConfig) -> Explained:
    """Return a step of a run. Raises: ConfigError or LayoutError for what cannot be trained so."""
    work = resolve(config, dry=True)
    if work.run.engine != "torch":
        raise ConfigError(
            f"--engine {work.run.engine} with paralab explain, which draws the steps of --engine torch: leave it out"
        )
    alone = resolve(replace(config, strategy=None, layout=Layout(), nproc=None), dry=True)
    backend = config.backend or "gloo"
    with Phases(Now.now(), transient=True) as phases:
        phases.begin("one step without devices", total=len(places(work)) + 1)
        found, lacking = _dry(work, backend, phases.advance)
        whole = _alone(alone.run) if found else []
    lanes = [lane_of(rank, work, found) for rank in shown(work.layout)]
    return Explained(
        work,
        lanes,
        _held(alone, 0, whole[0] if whole else None),
        list(sendings(work, lanes, backend)),
        [Passes(axis, planned(order), bubble_theory_share(order)) for axis, order in _orders(work)],
        backend,
        lacking,
    )


def _dry(work: Work, backend: str, on_rank: Callable[[], None] = lambda: None) -> tuple[list[DryRank], str]:
    """Return what a dry run finds of each distinct rank, or why there is none. on_rank: called after each."""
    try:
        return dry_run(work, backend=backend, on_rank=on_rank), ""
    except (ConfigError, LayoutError) as error:
        return [], str(error).removeprefix("--dry-run").lstrip(": ")


@cache
def _alone(run: RunConfig) -> list[DryRank]:
    """Return what a dry run finds of one process: the same for every layout."""
    return _dry(resolve(run, dry=True), "gloo")[0]


# --- ranks, and what they hold


def shown(layout: Layout) -> list[int]:
    """Return the ranks that are drawn: all of them, or the first along every axis where they are too many."""
    sizes = {axis: layout.size(axis) for axis in layout.factors}
    while prod(sizes.values()) > MOST_LANES:
        largest = max(sizes, key=lambda axis: sizes[axis])
        sizes[largest] //= 2
    steps = [prod(layout.size(axis) for axis in layout.factors[i + 1 :]) for i in range(len(sizes))]
    places = itertools.product(*map(range, sizes.values()))
    return [sum(at * step for at, step in zip(place, steps, strict=True)) for place in places]


def _at(rank: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return where a rank is in a grid, whose last dim has neighbours."""
    place = {}
    for name, size in reversed([*sizes.items()]):
        rank, place[name] = divmod(rank, size)
    return dict(reversed(place.items()))


def lane_of(rank: int, work: Work, found: Sequence[DryRank]) -> Lane:
    """Return a rank, with what a dry run found of the ranks of its kind; found: empty where there is none."""
    layout = work.layout
    place = _at(rank, {axis: layout.size(axis) for axis in layout.factors})
    dry = next((one for one in found if all(at in one.place.of[axis] for axis, at in place.items())), None)
    held = _held(work, place.get("pp", 0), dry)
    return Lane(rank, place, _at(rank, layout.dims), work.division.rows_of(place.get("dp", 0)), held)


def _held(work: Work, pp_rank: int, dry: DryRank | None) -> Held:
    """Return the states as the axes say, and the rest as a dry run found it."""
    state = state_bytes_of(work, pp_rank)
    held = {"weights": state.parameters, "gradients": state.gradients, "optimizer": state.optimizer}
    held |= {"on the host": state.host} if state.host else {}
    if dry is None:
        return held
    peak = dry.memory.peak
    return held | {
        "activations": peak["activations"],
        "buffers": peak["buffers"],
        "most at once": dry.memory.peak_bytes,
    }


# --- what they send


def sendings(work: Work, lanes: Sequence[Lane], backend: str) -> Iterator[Sending]:
    """Yield what the lanes send in a step of a run, as a backend sends it."""
    layout = work.layout
    if layout.world_size == 1:
        return
    noted = list(noted_stages(work, layout.stages - 1))
    pipeline = [lane.place.get("pp", 0) for lane in lanes]
    counted: dict[tuple[Moment, str, str], dict[int, tuple[Fraction, int]]] = {}
    for rank in dict.fromkeys(pipeline):
        for axis, transfers in predicted_transfers(work, rank, noted=noted).items():
            for call in transfers:
                of_ranks = counted.setdefault((call.when, axis, call.op), {})
                sent, calls = of_ranks.get(rank, (Fraction(0), 0))
                more = wire_bytes(call.op, call.payload_bytes, call.ranks, backend=backend)
                of_ranks[rank] = sent + more, calls + (call.calls if call.payload_bytes else 0)
    for (when, axis, op), of_ranks in counted.items():
        each = [of_ranks.get(rank, (Fraction(0), 0)) for rank in pipeline]
        if any(sent for sent, _ in each):
            groups = list(_groups(axis, layout, lanes))
            yield Sending(when, axis, op, groups, [sent for sent, _ in each], max(calls for _, calls in each))


def _groups(axis: str, layout: Layout, lanes: Sequence[Lane]) -> Iterator[list[int]]:
    """Yield the lanes that are together in a group of an axis, of a dim of one, or of joined dims."""
    along = _dims_of(axis, layout)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, lane in enumerate(lanes):
        rest = tuple(at for dim, at in lane.dims.items() if dim not in along)
        groups.setdefault(rest, []).append(number)
    yield from groups.values()


def _dims_of(axis: str, layout: Layout) -> set[str]:
    own = {one.name: set(one.dims(layout)) for one in all_axes()}
    joined = {name: set(dims) for name, dims in layout.joined.items()}
    several = joined | own | {"world": set(layout.dims)}
    return {axis} if axis in layout.dims else several[axis]


def _orders(work: Work) -> Iterator[tuple[str, Sequence]]:
    for axis in all_axes():
        if axis.is_used(work.layout) and (order := axis.passes(work)) is not None:
            yield axis.name, order
