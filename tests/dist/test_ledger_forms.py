"""Count what two gloo processes send, strategy by strategy, and compare with the closed forms: equal, to the byte."""

import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import ScheduleZBVZeroBubble
from torch.distributed.tensor import DTensor, Partial, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from paralab.axes import forms
from paralab.layout import SCHEDULES, Schedule
from paralab.measure.ledger import CommLedger
from paralab.measure.memory import MemoryCensus
from tests.dist.gloo import let_go

pytestmark = pytest.mark.always  # all that is looked at was counted by one fixture

RANKS = 2
BATCH, SEQ, WIDTH, MICRO_BATCHES = 4, 4, 6, 4
SHAPES = [(7, 5), (7,), (3, 7), (3,)]  # of `_net`: no dimension 0 divides by two, so padding shows
NET_BYTES = 4 * sum(torch.Size(shape).numel() for shape in SHAPES)
PADDED_BYTES = 4 * forms.fsdp_padded_numel(SHAPES, dp=RANKS)
ACTIVATION_BYTES = 4 * BATCH * SEQ * WIDTH
MICRO_BYTES = 4 * BATCH // MICRO_BATCHES * WIDTH

Case = Callable[[DeviceMesh], object]


def ddp_bytes(gradient_bytes: int, *, dp: int) -> Fraction:
    """Predict replicated data parallelism: one all-reduce of all gradients (Li et al. 2020, PyTorch Distributed).

    `gradient_bytes` counts a shared parameter once. Broadcasts of module buffers come on top.
    """
    return forms.ring_bytes("all_reduce", gradient_bytes, dp)


def zero1_bytes(parameter_bytes: int, *, gradient_bytes: int | None = None, dp: int) -> Fraction:
    """Predict ZeRO-1 as torch's ZeroRedundancyOptimizer does it: DDP, then each owner broadcasts what it updated.

    The three parts of (dp - 1) / dp are one more than in Rajbhandari et al. 2020 (ZeRO, section 7), whose
    gradients are reduced to their owner only.
    """
    gradients = parameter_bytes if gradient_bytes is None else gradient_bytes
    return ddp_bytes(gradients, dp=dp) + forms.ring_bytes("broadcast", parameter_bytes, dp)


def fsdp_bytes(gathered_bytes: int, *, dp: int, gathers: int = 2, reduced_bytes: int | None = None) -> Fraction:
    """Predict sharded parameters: all-gathers in forward and backward, one reduce-scatter (ZeRO, section 7.2.2).

    gathered_bytes: padded parameters in the type they are gathered in (see `forms.fsdp_padded_numel`).
    gathers: 2 when parameters are freed after forward (ZeRO-3), 1 when they are kept until backward.
    reduced_bytes: padded gradients in the type they are reduced in, when it is another one.
    """
    reduced = gathered_bytes if reduced_bytes is None else reduced_bytes
    return gathers * forms.ring_bytes("all_gather", gathered_bytes, dp) + forms.ring_bytes(
        "reduce_scatter", reduced, dp
    )


def tensor_block_bytes(activation_bytes: int, *, tp: int, blocks: int, micro_batches: int = 1) -> Fraction:
    """Predict tensor parallelism: four all-reduces a transformer block, two in forward and two in backward.

    activation_bytes: one micro-batch at a block's boundary, (batch, seq, hidden), unsharded.
    Source: Shoeybi et al. 2019 (Megatron-LM), section 3. Sequence parallelism replaces each all-reduce by an
    all-gather and a reduce-scatter of the same bytes (Korthikanti et al. 2022, section 4.2.2).
    """
    return 4 * blocks * micro_batches * forms.ring_bytes("all_reduce", activation_bytes, tp)


def pipeline_bytes(activation_bytes: int, *, schedule: Schedule, pp: int, pp_rank: int, micro_batches: int) -> Fraction:
    """Predict one pipeline rank's sends: an activation to the next stage and a gradient to the one before.

    activation_bytes: what one micro-batch carries over a boundary between stages. Boundaries inside a rank
    (the bottom of a V) are free. Source: Narayanan et al. 2021, section 3.2 (PTD-P), point-to-point per micro-batch.
    """
    last = pp * schedule.stages_per_rank - 1
    stages = schedule.stages_of(pp_rank, pp)
    neighbours = [other for stage in stages for other in (stage - 1, stage + 1) if 0 <= other <= last]
    remote = sum(schedule.rank_of(other, pp) != pp_rank for other in neighbours)
    return micro_batches * remote * forms.ring_bytes("send", activation_bytes, pp)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def _backward(model: nn.Module) -> None:
    model(torch.randn(BATCH, 5)).square().sum().backward()


def _count(mesh: DeviceMesh, step: Callable[[], object], *, axes: dict | None = None) -> list:
    ledger = CommLedger({"dp": mesh.get_group()} if axes is None else axes)
    with ledger:
        step()
    return ledger.rows()


def _ddp(mesh: DeviceMesh) -> object:
    model = DistributedDataParallel(_net(), device_mesh=mesh)
    _backward(model)
    _backward(model)  # the second step agrees on new buckets, by two broadcasts
    return _count(mesh, lambda: _backward(model))


def _zero1(mesh: DeviceMesh) -> object:
    model = DistributedDataParallel(_net(), device_mesh=mesh)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.AdamW, lr=0.1)

    def step() -> None:
        _backward(model)
        optimizer.step()

    step()
    step()
    return _count(mesh, step)


def _fsdp(reshard: bool) -> Case:
    def case(mesh: DeviceMesh) -> object:
        model = _net()
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(model, mesh=mesh)
        _backward(model)
        return _count(mesh, lambda: _backward(model))

    return case


def _tensor(sequence: bool) -> Case:
    def case(mesh: DeviceMesh) -> object:
        split: dict[str, Any] = {"input_layouts": Shard(1)} if sequence else {}
        joined: dict[str, Any] = {"output_layouts": Shard(1)} if sequence else {}
        # As in a transformer block: two pairs of a column-wise and a row-wise product.
        model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH))
        plan: dict[str, ParallelStyle] = {
            str(i): ColwiseParallel(**split) if i % 2 == 0 else RowwiseParallel(**joined) for i in range(4)
        }
        if sequence:
            model.append(nn.LayerNorm(WIDTH))
            plan["4"] = SequenceParallel()
        parallelize_module(model, mesh, plan)
        x = torch.randn(BATCH, SEQ // (RANKS if sequence else 1), WIDTH, requires_grad=True)

        def step() -> None:
            y = model(x)
            (y.to_local() if sequence else y).sum().backward()

        return _count(mesh, step, axes={"tp": mesh.get_group()})

    return case


def _pipeline(name: str) -> Case:
    kinds = {"1f1b": Schedule1F1B, "interleaved": ScheduleInterleaved1F1B, "zbv": ScheduleZBVZeroBubble}

    def case(mesh: DeviceMesh) -> object:
        layout, rank = SCHEDULES[name], dist.get_rank()
        total = RANKS * layout.stages_per_rank
        held = [
            PipelineStage(nn.Linear(WIDTH, WIDTH), i, total, torch.device("cpu"), group=mesh.get_group())
            for i in layout.stages_of(rank, RANKS)
        ]
        many = layout.stages_per_rank > 1
        schedule = kinds[name](held if many else held[0], MICRO_BATCHES, loss_fn=nn.functional.mse_loss)
        inputs = (torch.randn(BATCH, WIDTH),) if layout.rank_of(0, RANKS) == rank else ()
        target = torch.randn(BATCH, WIDTH) if layout.rank_of(total - 1, RANKS) == rank else None
        schedule.step(*inputs, target=target)  # the first step exchanges shapes
        axes = {"pp": mesh.get_group()}
        return _count(mesh, lambda: schedule.step(*inputs, target=target), axes=axes)

    return case


def _primitives(mesh: DeviceMesh) -> object:
    """Return {call: rows} for each way to call torch.distributed on 6 floats a rank."""
    rank, group, other = dist.get_rank(), mesh.get_group(), 1 - dist.get_rank()
    x, pair = torch.ones(6), torch.ones(12)

    def swap() -> None:
        calls = [dist.P2POp(dist.isend, x, other), dist.P2POp(dist.irecv, torch.empty(6), other)]
        for work in dist.batch_isend_irecv(calls):
            work.wait()

    def ping() -> None:
        dist.send(x, other) if rank == 0 else dist.recv(torch.empty(6), other)

    def through_autograd() -> None:
        moved = funcol.all_to_all_single_autograd(x.clone().requires_grad_(), None, None, group)
        moved.sum().backward()

    calls = {
        "all_reduce": lambda: dist.all_reduce(x.clone()),
        "all_gather": lambda: dist.all_gather([torch.empty(6), torch.empty(6)], x),
        "all_gather_into": lambda: dist.all_gather_into_tensor(torch.empty(12), x),
        "reduce_scatter": lambda: dist.reduce_scatter(torch.empty(6), [x, x]),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(torch.empty(6), pair),
        "all_to_all": lambda: dist.all_to_all([torch.empty(6), torch.empty(6)], [x, x]),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.empty(12), pair),
        "broadcast": lambda: dist.broadcast(x.clone(), 0),
        "reduce": lambda: dist.reduce(x.clone(), 0),
        "gather": lambda: dist.gather(x, [torch.empty(6), torch.empty(6)] if rank == 0 else None),
        "scatter": lambda: dist.scatter(torch.empty(6), [x, x] if rank == 0 else None),
        "barrier": dist.barrier,
        "ping": ping,
        "swap": swap,
        "functional_all_reduce": lambda: funcol.wait_tensor(funcol.all_reduce(x, "sum", group)),
        "coalesced": lambda: dist.all_reduce_coalesced([x.clone(), pair.clone()]),
        "functional_all_gather": lambda: funcol.wait_tensor(funcol.all_gather_tensor(x, 0, group)),
        "functional_coalesced": lambda: [
            funcol.wait_tensor(t) for t in funcol.all_gather_into_tensor_coalesced([x, pair], group)
        ],
        "functional_autograd": through_autograd,
        # DTensor reduces a partial sum by itself before it applies a function that is not linear.
        "inside_dtensor": lambda: DTensor.from_local(x, mesh, [Partial()]).relu(),
        "objects": lambda: dist.all_gather_object([None, None], "x"),
    }
    return {name: _count(mesh, call) for name, call in calls.items()}


def _axis_names(mesh: DeviceMesh) -> object:
    """Return the axis that an all-reduce is counted under, by how its group was made."""
    twin, alone = dist.new_group([0, 1]), [dist.new_group([rank]) for rank in range(RANKS)][dist.get_rank()]

    def axis(group: dist.ProcessGroup, axes: dict) -> str:
        return _count(mesh, lambda: dist.all_reduce(torch.ones(1), group=group), axes=axes)[0].axis

    known = {"dp": mesh.get_group()}
    return [axis(mesh.get_group(), known), axis(twin, known), axis(twin, {}), axis(alone, known)]


def _memory(mesh: DeviceMesh) -> object:
    """Return {strategy: MemoryReport} of one step of a large linear layer."""

    def census(model: nn.Module, optimizer: torch.optim.Optimizer) -> object:
        def step() -> None:
            model(torch.ones(1, 1000)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        step()  # DDP rebuilds its buckets in the second
        with MemoryCensus([model], [optimizer]) as seen:
            step()
            let_go()
        return seen.report()

    def linear() -> nn.Linear:
        return nn.Linear(1000, 1000, bias=False)

    plain = linear()
    ddp, zero1 = (DistributedDataParallel(linear(), device_mesh=mesh) for _ in range(2))
    viewed = DistributedDataParallel(linear(), device_mesh=mesh, gradient_as_bucket_view=True)
    fsdp = nn.Sequential(linear())
    fully_shard(fsdp, mesh=mesh)
    with MemoryCensus([]) as partial:
        DTensor.from_local(torch.ones(1000, 1000), mesh, [Partial()]).relu()
        let_go()
    adam: dict[str, Any] = {"lr": 0.1, "foreach": False}
    return {
        "dtensor": partial.report(),
        "single": census(plain, torch.optim.AdamW(plain.parameters(), **adam)),
        "ddp": census(ddp, torch.optim.AdamW(ddp.parameters(), **adam)),
        "ddp_view": census(viewed, torch.optim.AdamW(viewed.parameters(), **adam)),
        "zero1": census(zero1, ZeroRedundancyOptimizer(zero1.parameters(), optimizer_class=torch.optim.AdamW, **adam)),
        "fsdp": census(fsdp, torch.optim.AdamW(fsdp.parameters(), **adam)),
    }


CASES: dict[str, Case] = {
    "ddp": _ddp,
    "zero1": _zero1,
    "fsdp": _fsdp(True),
    "fsdp_kept": _fsdp(False),
    "tensor": _tensor(False),
    "sequence": _tensor(True),
    "1f1b": _pipeline("1f1b"),
    "interleaved": _pipeline("interleaved"),
    "zbv": _pipeline("zbv"),
    "primitives": _primitives,
    "axes": _axis_names,
    "memory": _memory,
}


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", RANKS), rank=rank, world_size=RANKS)
    try:
        mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("axis",))
        results = {name: case(mesh) for name, case in CASES.items()}
        Path(folder, f"rank{rank}").write_bytes(pickle.dumps(results))
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank counted, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_work, args=(str(folder),), nprocs=RANKS)
    return [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(RANKS)]


def _sent(rows: list, axis: str) -> Fraction:
    assert {row.axis for row in rows} == {axis}
    return sum((row.ring_bytes for row in rows), Fraction(0))


def _calls(rows: list) -> dict[str, tuple[int, int]]:
    return {row.op: (row.calls, row.payload_bytes) for row in rows}


@pytest.mark.parametrize("rank", range(RANKS))
def test_replicated_data_parallelism_reduces_all_gradients_once(results: list[dict], rank: int) -> None:
    rows = results[rank]["ddp"]
    assert _sent(rows, "dp") == ddp_bytes(NET_BYTES, dp=RANKS)
    assert _calls(rows) == {"all_reduce": (1, NET_BYTES)}


@pytest.mark.parametrize("rank", range(RANKS))
def test_zero1_also_broadcasts_every_parameter(results: list[dict], rank: int) -> None:
    rows = results[rank]["zero1"]
    assert _sent(rows, "dp") == zero1_bytes(NET_BYTES, dp=RANKS)
    assert _calls(rows)["broadcast"] == (len(SHAPES), NET_BYTES)


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize(("case", "gathers"), [("fsdp", 2), ("fsdp_kept", 1)])
def test_sharded_parameters_move_padded(results: list[dict], rank: int, case: str, gathers: int) -> None:
    rows = results[rank][case]
    assert PADDED_BYTES > NET_BYTES
    assert _sent(rows, "dp") == fsdp_bytes(PADDED_BYTES, dp=RANKS, gathers=gathers)
    assert _calls(rows) == {
        "all_gather": (2 * gathers, gathers * PADDED_BYTES),
        "reduce_scatter": (2, PADDED_BYTES),
    }


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("case", ["tensor", "sequence"])
def test_tensor_parallel_block_sends_four_all_reduces(results: list[dict], rank: int, case: str) -> None:
    rows = results[rank][case]
    assert _sent(rows, "tp") == tensor_block_bytes(ACTIVATION_BYTES, tp=RANKS, blocks=1)
    four = (4, 4 * ACTIVATION_BYTES)
    assert _calls(rows) == ({"all_reduce": four} if case == "tensor" else {"all_gather": four, "reduce_scatter": four})


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zbv"])
def test_pipeline_boundaries(results: list[dict], rank: int, name: str) -> None:
    rows = results[rank][name]
    predicted = pipeline_bytes(
        MICRO_BYTES, schedule=SCHEDULES[name], pp=RANKS, pp_rank=rank, micro_batches=MICRO_BATCHES
    )
    assert _sent(rows, "pp") == predicted > 0
    assert set(_calls(rows)) == {"send", "recv"}


@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("all_reduce", {"all_reduce": (1, 24)}),
        ("all_gather", {"all_gather": (1, 48)}),
        ("all_gather_into", {"all_gather": (1, 48)}),
        ("reduce_scatter", {"reduce_scatter": (1, 48)}),
        ("reduce_scatter_tensor", {"reduce_scatter": (1, 48)}),
        ("all_to_all", {"all_to_all": (1, 48)}),
        ("all_to_all_single", {"all_to_all": (1, 48)}),
        ("broadcast", {"broadcast": (1, 24)}),
        ("reduce", {"reduce": (1, 24)}),
        ("gather", {"gather": (1, 48)}),
        ("scatter", {"scatter": (1, 48)}),
        ("barrier", {"barrier": (1, 0)}),
        ("swap", {"send": (1, 24), "recv": (1, 24)}),
        ("functional_all_reduce", {"all_reduce": (1, 24)}),
        ("coalesced", {"all_reduce": (1, 24 + 48)}),
        ("functional_all_gather", {"all_gather": (1, 48)}),
        ("functional_coalesced", {"all_gather": (1, 2 * (24 + 48))}),
        ("functional_autograd", {"all_to_all": (2, 48)}),
        ("inside_dtensor", {"all_reduce": (1, 24)}),
    ],
)
def test_each_call_is_counted_once(results: list[dict], rank: int, call: str, expected: dict) -> None:
    assert _calls(results[rank]["primitives"][call]) == expected


@pytest.mark.parametrize("rank", range(RANKS))
def test_send_and_receive_count_on_their_side(results: list[dict], rank: int) -> None:
    (row,) = results[rank]["primitives"]["ping"]
    assert (row.op, row.payload_bytes, row.ring_bytes) == (("send", 24, 24), ("recv", 24, 0))[rank]
    assert row.wire_bytes == row.ring_bytes


def test_objects_are_counted_with_their_sizes(results: list[dict]) -> None:
    (row,) = results[0]["primitives"]["objects"]
    size = len(pickle.dumps("x", protocol=pickle.DEFAULT_PROTOCOL))
    assert row.op == "all_gather"
    assert row.calls == 2  # sizes as int64, then the pickled bytes
    assert row.payload_bytes == RANKS * (8 + size)


def test_groups_are_known_by_name_or_by_ranks(results: list[dict]) -> None:
    assert results[0]["axes"] == ["dp", "dp", "world", "other"]


WEIGHT = 4 * 1000 * 1000


@pytest.mark.parametrize(
    ("strategy", "parameters", "gradients", "optimizer", "buffers"),
    [
        ("single", WEIGHT, WEIGHT, 2 * WEIGHT, 0),
        ("ddp", WEIGHT, WEIGHT, 2 * WEIGHT, WEIGHT),  # the bucket is a second copy of the gradients
        ("ddp_view", WEIGHT, WEIGHT, 2 * WEIGHT, 0),
        ("zero1", WEIGHT, WEIGHT, 2 * WEIGHT, WEIGHT),  # the one parameter has one owner: rank 0
        # At the peak: the full gradient and its shard, and the input of the reduce-scatter. A fourth WEIGHT is gloo's
        # copy of that, or the gathered buffer when a gloo thread lets go of it late.
        ("fsdp", WEIGHT // 2, WEIGHT + WEIGHT // 2, WEIGHT, WEIGHT),
    ],
)
def test_memory_by_category(
    results: list[dict], strategy: str, parameters: int, gradients: int, optimizer: int, buffers: int
) -> None:
    report = results[0]["memory"][strategy]
    assert report.peak["parameters"] == report.rest["parameters"] == parameters
    assert report.peak["gradients"] == gradients
    assert report.rest["optimizer"] == report.peak["optimizer"] == optimizer + 4  # and the step counter
    assert report.peak["buffers"] in ((buffers, buffers + WEIGHT) if strategy == "fsdp" else (buffers,))
    assert report.peak["other"] == 0
    assert report.rest["activations"] == 0


@pytest.mark.parametrize("rank", range(RANKS))
def test_peak_of_sharded_parameters(results: list[dict], rank: int) -> None:
    scalars = 3 * 4  # step counter, loss and its gradient
    assert results[rank]["memory"]["fsdp"].peak_bytes == 5 * WEIGHT + scalars


def test_memory_inside_dtensor(results: list[dict]) -> None:
    # The partial sum, its reduction in DTensor's own code, and the result.
    report = results[0]["memory"]["dtensor"]
    assert report.peak_bytes == 3 * WEIGHT
    assert not any(report.rest.values())


def test_memory_that_another_rank_owns_is_not_counted(results: list[dict]) -> None:
    assert results[1]["memory"]["zero1"].rest["optimizer"] == 0
