"""Seconds and memory of one step of a run on a device that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from paralab.axes import used
from paralab.axes.axis import Transfer, Unit
from paralab.axes.context import Planned
from paralab.axes.data.ranks import overlaps
from paralab.axes.sent import predicted_transfers
from paralab.layout import Layout
from paralab.layout.layout import MOST_RANKS
from paralab.layout.schedules import Pass
from paralab.planning.measured.device import MeasuredDevice, Rates
from paralab.planning.measured.imagined import Imagined
from paralab.planning.measured.live import peak_sharded
from paralab.planning.measured.schedule import Took, makespan_s
from paralab.planning.measured.seconds import bytes_s, pass_s, transfer_s
from paralab.planning.measured.trace import Traced, noted, states, traces

_OPTIMIZERS = {"adamw": "_fused_adamw", "sgd": "_fused_sgd"}


@dataclass(frozen=True)
class Cluster:
    """Machines of the measured kind. per_node: processes of each. gbit_per_s: of the network, for one process."""

    per_node: int = MOST_RANKS
    gbit_per_s: float = 10.0


ONE_MACHINE = Cluster()


@dataclass(frozen=True)
class Memory:
    """Bytes on the rank that needs most, at its fullest moment."""

    states: float
    activations: float

    @property
    def total(self) -> float:
        return self.states + self.activations


@dataclass(frozen=True)
class Predicted:
    """A step. parts: seconds by cause, of the rank with most; waits for other ranks are what is missing."""

    step_time_s: float
    memory: Memory
    parts: Mapping[str, float] = field(default_factory=dict)

    def times(self, factor: float) -> "Predicted":
        """Return the same where everything takes so many times as long."""
        parts = {name: factor * seconds for name, seconds in self.parts.items()}
        return Predicted(factor * self.step_time_s, self.memory, parts)

    @property
    def bound(self) -> str:
        """What most of a step goes into."""
        return max(self.parts, key=lambda name: self.parts[name])


def predict(plan: Planned, device: MeasuredDevice, cluster: Cluster = ONE_MACHINE) -> Predicted:
    """Return what is expected of a step of the native engine."""
    layout = plan.layout
    here = min(layout.world_size, cluster.per_node)  # processes of a machine
    rates, each = device.rates_of(here), traces(plan)
    speed = _speed(device, rates, here, layout.pp)
    links = _Links(plan, device, cluster)
    software_s = _software_s(plan, device)
    passes_s = _passes_s(plan, each, rates, links, speed, software_s)
    crowd = max(1 / speed(layout.pp), 1.0)
    update_s = (_update_s(plan, each, rates) + _copies_s(plan, rates)) * crowd
    once_s = links.once_s
    stages_s = [_stage_s(one, rates) + more_s for one, more_s in zip(each, software_s, strict=True)]
    parts = {
        "compute": plan.division.chunks * max(stages_s) * crowd,
        "update": update_s,
        "link": plan.division.chunks * links.in_pass_s[0] + once_s,
    }
    parts["bubble"] = max(passes_s + update_s + once_s - sum(parts.values()), 0.0)
    return Predicted(passes_s + update_s + once_s, memory(plan, each), parts)


@lru_cache(maxsize=1024)
def _order(schedule: str, pp: int, micro_batches: int) -> list[list[Pass]]:
    from paralab.axes.pipeline.passes import pass_order

    return pass_order(schedule, pp=pp, micro_batches=micro_batches)


def _speed(device: MeasuredDevice, rates: Rates, processes: int, pp: int) -> "_Speed":
    return _Speed(device.cores if device.kind == "cpu" else 10**9, rates.threads, processes / pp)


@dataclass(frozen=True)
class _Speed:
    """The share of its own speed that a process keeps while so many pipeline ranks compute."""

    cores: int
    threads: int
    beside: float  # processes of each pipeline rank on a machine

    def __call__(self, pipeline_ranks: int) -> float:
        return min(1.0, self.cores / (pipeline_ranks * self.beside * self.threads))


def _stage_s(traced: Traced, rates: Rates) -> float:
    return pass_s(traced.forward, rates, backward=False) + pass_s(traced.backward, rates, backward=True)


def _copies_s(plan: Planned, rates: Rates) -> float:
    """Return what a rank spends in a step on copies of what it sends, into buffers and out of them."""
    if plan.layout.world_size == 1:
        return 0.0
    copied = [0] * plan.layout.pp
    for one in noted(plan):
        for axis in used(plan.layout):
            copied[_rank_of(plan.layout, one.stage.index)] += sum(axis.copied(one.stage, plan))
    return bytes_s("copy", 2 * max(copied), rates) if max(copied) else 0.0


def _software_s(plan: Planned, device: MeasuredDevice) -> list[float]:
    """Return what the axes have software do on the host, in seconds of each stage in one micro-batch."""
    if plan.layout.world_size == 1:
        return [0.0]
    stages = [one.stage for one in noted(plan)]
    done = [[told for axis in used(plan.layout) for told in axis.software(stage, plan)] for stage in stages]
    return [sum(times * device.software.get(what, 0.0) for what, times in told) for told in done]


def _passes_s(
    plan: Planned,
    each: tuple[Traced, ...],
    rates: Rates,
    links: "_Links",
    speed: _Speed,
    software_s: Sequence[float],
) -> float:
    """Return the seconds of all forward and backward passes of a step."""
    layout, chunks = plan.layout, plan.division.chunks
    halves = [more_s / 2 for more_s in software_s]  # forward and backward have about as much
    forward = [pass_s(one.forward, rates, backward=False) + half for one, half in zip(each, halves, strict=True)]
    backward = [pass_s(one.backward, rates, backward=True) + half for one, half in zip(each, halves, strict=True)]
    if layout.pp == 1:
        return chunks * ((forward[0] + backward[0]) / speed(1) + links.in_pass_s[0])

    def took(one: Pass) -> Took:
        share = {"F": (1, 0), "B": (0, 1), "I": (0, 0.5), "W": (0, 0.5)}[one.kind]
        waits = links.in_pass_s[one.stage] * (0.0 if one.kind == "W" else 0.5)
        return Took(share[0] * forward[one.stage] + share[1] * backward[one.stage], waits)

    times = 1
    order = _order(layout.schedule, layout.pp, chunks)
    if layout.schedule == "naive":
        times, order = chunks, _order("naive", layout.pp, 1)
    return times * makespan_s(
        order,
        took,
        lambda one: links.message_s,
        rank_of=lambda stage: _rank_of(layout, stage),
        stages=layout.stages,
        speed=speed,
    )


class _Links:
    """Seconds that ranks spend on links. in_pass_s: of each stage in one micro-batch. once_s: of a step."""

    def __init__(self, plan: Planned, device: MeasuredDevice, cluster: Cluster) -> None:
        self.layout, self.device, self.cluster = plan.layout, device, cluster
        layout, chunks = plan.layout, plan.division.chunks
        notes = noted(plan) if layout.world_size > 1 else ()
        found = [predicted_transfers(plan, rank, noted=notes) for rank in range(layout.pp)]
        inside, once = [0.0] * layout.pp, [0.0] * layout.pp
        for rank, calls in enumerate(found):
            for name, transfer in ((name, t) for name, each in calls.items() for t in each if t.op != "send"):
                place = inside if _in_pass(name, transfer, chunks) else once
                place[rank] += self._s(name, transfer)
        held = layout.stages // layout.pp
        self.in_pass_s = [inside[_rank_of(layout, s)] / chunks / held for s in range(layout.stages)]
        self.once_s = max(once)
        sends = [t for calls in found for t in calls.get("pp", ()) if t.op == "send" and t.calls >= chunks]
        self.message_s = max((self._s("pp", t) / t.calls for t in sends), default=0.0)

    def _s(self, name: str, transfer: Transfer) -> float:
        far = self.cluster.gbit_per_s * 1e9 / 8 if self._leaves_node(name) else None
        return transfer_s(transfer, self.device, network_bytes_per_s=far)

    def _leaves_node(self, name: str) -> bool:
        """Return whether the ranks of an axis, or of one dim of it, are on several machines."""
        dims = list(self.layout.dims.items())
        inner = 1
        for other, size in reversed(dims):
            if other == name:
                return inner * size > self.cluster.per_node
            inner *= size
        return inner > self.cluster.per_node


def _rank_of(layout: Layout, stage: int) -> int:
    return layout.pipeline.rank_of(stage, layout.pp) if layout.pp > 1 else 0


def _in_pass(name: str, transfer: Transfer, chunks: int) -> bool:
    """Return whether calls belong to each micro-batch: those of modules do."""
    return transfer.op != "send" and transfer.calls >= chunks and (name == "tp" or transfer.calls > chunks)


def _update_s(plan: Planned, each: tuple[Traced, ...], rates: Rates) -> float:
    """Return the seconds of gradient norm, clipping and optimizer, on the rank that updates most."""
    layout = plan.layout
    held: dict[int, tuple[int, int]] = {}
    for stage, one in enumerate(each):
        rank = _rank_of(layout, stage)
        weights, tensors = held.get(rank, (0, 0))
        held[rank] = weights + one.weights, tensors + one.parameters
    kind = _OPTIMIZERS[plan.run.optimizer]

    def seconds(weights: int, tensors: int) -> float:
        share = layout.dp if layout.zero >= 1 else 1
        norm_share = layout.dp if layout.zero >= 2 else 1
        updated = weights / share
        adam = bytes_s(kind, 28 * updated, rates)
        norm = bytes_s("linalg_vector_norm", 4 * weights / norm_share, rates)
        clip = bytes_s("mul", 8 * weights / norm_share, rates)
        return adam + norm + clip + tensors * rates.tensor_s

    return max(seconds(*one) for one in held.values())


def memory(plan: Planned, each: tuple[Traced, ...]) -> Memory:
    """Return what the tensors of a step take on the fullest rank, as a census of a step counts them."""
    layout, chunks = plan.layout, plan.division.chunks
    if layout.schedule in (None, "naive"):  # one micro-batch after the other: the second finds gradients of the first
        once: list[list[Pass]] = [[Pass("F", 0, 0), Pass("B", 0, 0)]]
        if layout.schedule:
            once = _order(layout.schedule, layout.pp, 1)
        orders = [passes * min(chunks, 2) for passes in once]
    else:
        orders = _order(layout.schedule, layout.pp, chunks)
    room, each = _room(plan), _with_recomputed(plan, each, orders)
    if layout.pp == 1 and room[0].units:
        return _sharded(plan, each[0], room[0])
    ranks = (_of_rank(plan, each, rank, passes, room[rank]) for rank, passes in enumerate(orders))
    return max(ranks, key=lambda m: m.total)


def _with_recomputed(plan: Planned, each: tuple[Traced, ...], orders: Sequence[Sequence[Pass]]) -> tuple[Traced, ...]:
    """Return the same stages, of which what the first half of a backward pass computes again waits for the second."""
    if plan.run.checkpointing not in ("full", "selective") or not any(one.kind == "I" for p in orders for one in p):
        return each
    run = replace(plan.run, checkpointing="none")
    whole = traces(Imagined(run, plan.spec, plan.model_config, plan.layout, plan.division))
    more = [max(plain.kept_bytes - one.kept_bytes, 0) for plain, one in zip(whole, each, strict=True)]
    return tuple(replace(one, waiting_bytes=one.waiting_bytes + n) for one, n in zip(each, more, strict=True))


@dataclass
class _Room:
    """What a pipeline rank takes beside states and activations, in bytes.

    received: kept for what it receives. finishing: to complete gradients. units: parameters that it gathers.
    """

    received: int = 0
    finishing: int = 0
    units: list[Unit] = field(default_factory=list)

    @property
    def gathered(self) -> int:
        return sum(unit.whole_bytes for unit in self.units)


def _room(plan: Planned) -> list[_Room]:
    """Return what each pipeline rank takes beside states and activations."""
    rooms = [_Room() for _ in range(plan.layout.pp)]
    for one in noted(plan) if plan.layout.world_size > 1 else ():
        rank = _rank_of(plan.layout, one.stage.index)
        room, stage = rooms[rank], replace(one.stage, pp_rank=rank)
        for axis in used(plan.layout):
            room.received += axis.received(stage, plan)
            room.finishing = max(room.finishing, axis.finishing(stage, plan))
            room.units += axis.gathered(stage, plan)
    return rooms


def _sharded(plan: Planned, traced: Traced, room: _Room) -> Memory:
    """Return the memory of a rank that gathers parameters block by block, and divides gradients as they come.

    Micro-batches after the first one find the shards of gradients there.
    """
    held = states(plan, 0)
    there = sum(unit.shard_bytes for unit in room.units) if plan.division.chunks > 1 else 0
    best = held.parameters + held.optimizer + there + peak_sharded(traced.live, room.units)
    return Memory(held.total, max(best - held.total, room.finishing))


def _of_rank(plan: Planned, each: tuple[Traced, ...], rank: int, passes: Sequence[Pass], room: _Room) -> Memory:
    """Return the memory of a pipeline rank: a stage's gradients appear during its first backward pass, and stay.

    Where that has two halves, the first one frees nothing: what the layers got from above waits for the second one. The
    first stage has no gradient of its input to make, and does all of it then.
    torch's DistributedDataParallel holds buckets for all of them at all times, which are the gradients of the last
    micro-batch; those before it leave theirs beside them. In a pipeline FSDP keeps whole what it has gathered, and
    gradients until the last pass; then it divides them, what lies outside the blocks first.
    """
    layout, held = plan.layout, states(plan, rank)
    whole = sum(unit.reduced_bytes for unit in room.units) or held.gradients
    always, stages = overlaps(layout), {one.stage for one in passes}
    buckets = held.gradients if always and plan.division.chunks > 1 else 0
    there = set(stages) if always and not buckets else set()  # stages whose gradients are there
    best, kept = Memory(held.total if always else 0, 0), 0
    for one in passes:
        traced = each[one.stage]
        more = traced.waiting_bytes if one.stage > 0 else 0
        kept -= {"B": traced.kept_bytes, "W": traced.kept_bytes + more}.get(one.kind, 0)
        gradients, at_work = whole * len(there) / len(stages), traced.peak_bytes
        if one.kind == "W":
            at_work = traced.kept_bytes + more
        elif one.kind == "I":
            at_work -= traced.peak_gradients_bytes + traced.kept_bytes  # which stay kept
        elif one.stage in there:
            at_work = traced.adding_bytes
        else:
            gradients += traced.peak_gradients_bytes
            at_work -= traced.peak_gradients_bytes
        at_work += room.received + room.gathered
        now = Memory(held.parameters + held.optimizer + gradients + buckets, kept + at_work)
        best = max(best, now, key=lambda memory: memory.total)
        kept += {"F": traced.kept_bytes, "I": more}.get(one.kind, 0)
        there |= {one.stage} if one.kind in "BW" else set()
    reducing = room.gathered + max((unit.reduced_bytes - unit.whole_bytes for unit in room.units), default=0)
    last = Memory(held.total, room.received + max(room.finishing, reducing))
    return max(best, last, key=lambda memory: memory.total)
