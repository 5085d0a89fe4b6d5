"""A dry run against the closed forms of the axes, in this process: no rank is started."""

from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from paralab.axes.data import DataAxis
from paralab.axes.held import state_bytes
from paralab.axes.sent import Sent, predicted_sent
from paralab.errors import ConfigError, LayoutError, WorldError
from paralab.layout import Layout
from paralab.measure import dry_run
from paralab.measure.dry_run import DryRank
from paralab.models import gpt2
from paralab.models.values import value_at_hand
from paralab.options.config import RunConfig
from paralab.planning.measured.step import memory
from paralab.planning.measured.trace import traces
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import _MESHES
from paralab.processes.pretend import pretended
from tests.dist.cases import SHALLOW


def work_of(layout: str, **options: Any) -> Work:
    given: dict[str, Any] = {"model": "gpt2", **SHALLOW["gpt2"], "global_batch_size": 24} | options
    return resolve(RunConfig(layout=Layout.parse(layout), **given), dry=True)


def sent(found: DryRank) -> Sent:
    ring, wire = (
        {
            axis: sum((getattr(row, name) for row in found.comm if row.axis == axis), Fraction(0))
            for axis in {row.axis for row in found.comm}
        }
        for name in ("ring_bytes", "wire_bytes")
    )
    return Sent(ring, wire)


@pytest.mark.parametrize(
    "layout",
    [
        "dp4",
        pytest.param("dp3/zero1", marks=pytest.mark.long),
        "dp4/zero3/shard2",
        "dp2/local3",
        "tp4/sp",
        "pp4/1f1b/mb4",
        pytest.param("pp3/1f1b/mb4/first1", marks=pytest.mark.long),
        "pp2/zero-bubblex1/mb4",
        "dp2.tp2.pp2/zero3/zero-bubble/mb2/sp",
        "dp4.ep2/zero3",
    ],
)
def test_bytes_and_states_are_those_of_the_closed_forms(layout: str) -> None:
    work = work_of(layout, **({"model": "mixtral", **SHALLOW["mixtral"]} if "ep" in layout else {}))
    found = dry_run.dry_run(work, backend="gloo")
    assert sum(one.place.ranks for one in found) == work.layout.world_size
    for one in found:
        assert sent(one) == predicted_sent(work, one.place.of.get("pp", [0])[0], backend="gloo")
    # the closed form counts no padding, nor the numbers of steps that an optimizer keeps
    assert max(one.memory.state_peak_bytes for one in found) == pytest.approx(state_bytes(work).total, rel=0.02)
    assert not dist.is_initialized()


def test_a_layout_of_many_ranks_takes_the_steps_of_those_that_differ() -> None:
    work = work_of("dp128.tp4.pp2/mb2", global_batch_size=256)
    found = dry_run.dry_run(work, backend="nccl")
    assert [(one.place.rank, one.place.ranks, one.layers) for one in found] == [(0, 512, 2), (512, 512, 2)]
    tied = 264 * 32  # the padded vocabulary, of which the first and the last stage have a copy
    whole = [p.numel() for name, p in work.new_model().named_parameters() if "norm" in name or "bias" in name]
    assert 0 < 4 * sum(one.parameters for one in found) - work.n_parameters - tied < 4 * sum(whole) + 4 * 16 * 32


def test_ranks_with_fewer_rows_stand_apart() -> None:
    even, uneven = (dry_run.places(work_of(layout)) for layout in ("dp4.tp2/zero1", "dp3.pp2/zero1/mb2"))
    assert [(place.rank, dict(place.of)) for place in even] == [(0, {"dp": [0, 1, 2, 3], "tp": [0, 1]})]
    assert [(place.rank, dict(place.of)) for place in uneven] == [
        (0, {"pp": [0], "dp": [0, 1]}),
        (2, {"pp": [0], "dp": [2]}),
        (3, {"pp": [1], "dp": [0, 1]}),
        (5, {"pp": [1], "dp": [2]}),
    ]
    found = dry_run.dry_run(work_of("dp3/zero1"), backend="gloo")
    assert found[0].memory.peak["optimizer"] > found[1].memory.peak["optimizer"]


def test_more_micro_batches_under_way_hold_more() -> None:
    first = [
        dry_run.dry_run(work_of(layout, global_batch_size=32), backend="gloo")[0].memory.peak["activations"]
        for layout in ("pp2/gpipe/mb4", "pp2/1f1b/mb4")
    ]
    assert first[0] > 1.5 * first[1]


@pytest.mark.parametrize(("checkpointing", "off"), [("none", 0.06), ("full", 0.2)])
def test_memory_of_split_backward_passes_is_predicted(checkpointing: str, off: float) -> None:
    """What waits for the gradients of weights is there until then: as `paralab plan` for a measured device has it.

    Half would be missing without what is computed again; of blocks as small as these it is not known more closely.
    """
    work = work_of("pp3/zero-bubblex1/mb6", global_batch_size=48, checkpointing=checkpointing)
    found = max(one.memory.peak_bytes for one in dry_run.dry_run(work, backend="gloo"))
    assert memory(work, traces(work)).total == pytest.approx(found, rel=off)


@pytest.mark.parametrize("layout", ["dp1", "dp2", "dp2/local2", "pp2/naive"])
def test_gradients_that_micro_batches_before_have_left_are_predicted(layout: str) -> None:
    """Beside the buckets of DistributedDataParallel, where that averages them."""
    work = work_of(layout, accumulation=3)
    found = max(one.memory.peak_bytes for one in dry_run.dry_run(work, backend="gloo"))
    assert memory(work, traces(work)).total == pytest.approx(found, rel=0.005)


def test_recomputing_holds_less_and_sends_again() -> None:
    kept, again = (
        dry_run.dry_run(work_of("tp2", checkpointing=every), backend="gloo")[0] for every in ("none", "full")
    )
    assert again.memory.peak["activations"] < 0.7 * kept.memory.peak["activations"]
    assert sum(row.payload_bytes for row in again.comm) > sum(row.payload_bytes for row in kept.comm)


def test_what_a_step_cannot_do_is_one_line_with_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: nn.Module, x: Tensor) -> Tensor:
        return x @ x

    monkeypatch.setattr(gpt2.MLP, "forward", wrong)
    with pytest.raises(LayoutError, match=r"rank 0 of dp2/zero3 fails at gpt2.py:.*RuntimeError"):
        dry_run.dry_run(work_of("dp2/zero3"), backend="gloo")


def test_a_model_that_looks_at_values_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def looking(self: nn.Module, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    monkeypatch.setattr(gpt2.MLP, "forward", looking)
    with pytest.raises(ConfigError, match="looks at the values of a tensor"):
        dry_run.dry_run(work_of("dp2"), backend="gloo")


@pytest.mark.parametrize(
    ("layout", "options", "said"),
    [
        ("dp2", {"compile": "default"}, "--compile default"),
        ("dp2", {"engine": "accelerate"}, "--engine accelerate"),
        ("dp2/zero3/offload-parameters", {}, "offloading"),
        ("dp2", {"checkpointing": "offload"}, "offloading"),
    ],
)
def test_what_has_no_dry_run_is_refused(layout: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"--dry-run with {said}"):
        dry_run.dry_run(work_of(layout, **options), backend="gloo")


def test_a_process_among_others_is_left_alone() -> None:
    with pretended(Layout.parse("dp4"), 2) as mesh:
        assert (mesh.rank("dp"), mesh.size("dp"), dist.get_world_size()) == (2, 4, 4)
        with pytest.raises(WorldError, match="has met others"), pretended(Layout.parse("dp2"), 0):
            pass
    assert not _MESHES


def test_nothing_has_values_and_takes_memory() -> None:
    with pretended(Layout.parse("dp2"), 0) as mesh, mesh.tensors():
        assert torch.empty(1 << 50, device=mesh.device).nbytes == 1 << 52


def test_the_gradient_of_a_loss_is_known_and_no_other_number() -> None:
    """So the output layer scales its gradients, in memory of their size, where a run scales them, and nowhere else."""
    with pretended(Layout.parse("dp2"), 0) as mesh, mesh.tensors():
        loss = torch.zeros((), requires_grad=True)
        seen: list[float | None] = []
        loss.register_hook(lambda grad: seen.append(value_at_hand(grad)))
        loss.backward()
        (loss * 0.5).backward()
        (loss * torch.ones(())).backward()
        assert seen == [1.0, 0.5, None]


def test_the_data_axis_tells_ranks_apart_only_where_it_shares() -> None:
    assert DataAxis().alike(work_of("dp3")) == [[0, 1, 2]]
