"""Columns of a case that are counted: what is computed again, what compiling takes."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from paralab.axes.held import state_bytes
from paralab.axes.recompute import recomputation_ratio
from paralab.axes.sent import predicted_sent
from paralab.benchmarks.case.communication import comm_columns
from paralab.benchmarks.case.logged import _splits_of
from paralab.benchmarks.case.measured import RankResult
from paralab.benchmarks.case.row import _efficiency_columns, _memory_columns
from paralab.layout import Layout
from paralab.measure.ledger import CommRow
from paralab.measure.split import Split
from paralab.measure.steady import summarise
from paralab.models import SPECS
from paralab.options.config import RunConfig
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from paralab.records.describe import describe
from paralab.records.of_axes import sent_bytes
from paralab.records.requested import Requested
from tests.unit.synthetic_runs import run


@pytest.mark.parametrize(("model", "size"), [("gpt2", "tiny"), ("resnet", "20"), ("diffusion", "points")])
def test_recomputation_costs_less_than_a_forward_pass(model: str, size: str) -> None:
    spec = SPECS[model]
    config = spec.config(size)
    full, half = (recomputation_ratio(spec, config, every) for every in ("full", "2"))
    assert recomputation_ratio(spec, config, "none") == 1.0
    # A forward pass is a third of forward and backward, and at most that is done again.
    assert 1.0 < half < full < 4 / 3 + 1e-3


def test_recomputation_of_a_transformer_is_its_arithmetic() -> None:
    config = SPECS["gpt2"].config("124m")
    per_token, s, h = SPECS["gpt2"].flops(config).per_sample / config.seq_len, config.seq_len, config.hidden
    # query, key and value; both products of attention; the projection; the first layer of the MLP. Nothing of
    # backward needs the result of its second.
    again = config.n_layers * (2 * 3 * h * h + 4 * s * h + 2 * h * h + 2 * 4 * h * h)
    assert recomputation_ratio(SPECS["gpt2"], config, "full") == pytest.approx(1 + again / per_token, rel=1e-6)
    scores = config.n_layers * 2 * s * h  # of attention alone: backward needs no product of scores and values
    assert recomputation_ratio(SPECS["gpt2"], config, "selective") == pytest.approx(1 + scores / per_token, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "size", "n_classes"), [("resnet", "tiny", 10), ("resnet", "tiny", 12), ("gpt2", "tiny", None)]
)
def test_a_row_has_the_classes_of_the_model(model: str, size: str, n_classes: int | None) -> None:
    requested = n_classes if n_classes == 12 else None  # its data have ten
    work = resolve(RunConfig(model=model, size=size, nproc=1, n_classes=requested))
    rank = Rank(0, 1, 0, 1, "python")
    assert describe(work, Requested(), rank, torch.device("cpu"))["n_classes"] == n_classes


@pytest.mark.parametrize(
    ("layout", "checkpointing", "known"),
    [("pp2/zbv/mb2", "full", False), ("pp2/zbv/mb2", "none", True), ("pp2/1f1b/mb2", "full", True)],
)
def test_hfu_is_empty_where_backward_is_split_and_blocks_are_recomputed(
    layout: str, checkpointing: str, known: bool
) -> None:
    work = resolve(
        RunConfig(size="tiny", layout=Layout.parse(layout), checkpointing=checkpointing, global_batch_size=4)
    )
    times = [0.5] * 4
    columns = _efficiency_columns(work, [RankResult(peak_flops=1e12)], summarise(times), times)
    assert columns["mfu"] > 0
    assert (columns["hfu"] is not None) == known
    assert not known or columns["hfu"] >= columns["mfu"]


def test_predicted_states_count_the_host_where_it_is_the_device() -> None:
    layout = Layout.parse("dp2/zero3/offload-optimizer")
    work = resolve(RunConfig(size="tiny", layout=layout, global_batch_size=4))
    predicted = {
        device: _memory_columns(work, [RankResult()], device)["predicted_state_bytes"] for device in ("cpu", "cuda")
    }
    assert predicted == {"cpu": state_bytes(work).everywhere, "cuda": state_bytes(work).total}
    assert predicted["cuda"] < predicted["cpu"]


def test_bytes_are_predicted_for_the_stage_of_the_rank_that_sends_most() -> None:
    work = resolve(RunConfig(size="tiny", layout=Layout.parse("dp4.pp2/1f1b/mb2"), global_batch_size=16))
    stages = [predicted_sent(work, stage, device_type="cpu", backend="gloo").wire_bytes["dp"] for stage in (0, 1)]
    assert stages[0] != stages[1]
    for busiest in range(8):
        comm = {
            rank: [CommRow("dp", "all_reduce", 4, 1, 8, Fraction(9), Fraction(rank == busiest))] for rank in range(8)
        }
        columns = comm_columns(work, comm, device_type="cpu", backend="gloo")
        assert columns["comm_dp_predicted_sent_bytes"] == stages[busiest // 4]


def test_untimed_steps_keep_their_numbers_in_the_log() -> None:
    result = RankResult(splits=[Split(1.0, 0.0)] * 2, splits_from=7)
    assert [record.step for record in _splits_of(3, result, bubble_share=None)] == [7, 8]


def test_bytes_of_all_axes_add_up() -> None:
    row = run(comm_dp_sent_bytes=10.0, comm_tp_sent_bytes=4.0)
    assert (sent_bytes(row), sent_bytes(run()), sent_bytes(run(world_size=1))) == (14.0, None, 0.0)
    others = '{"comm_mine_sent_bytes": 3.0, "comm_mine_predicted_sent_bytes": 5.0, "comm_mine_ring_bytes": 7.0}'
    assert sent_bytes(run(comm_dp_sent_bytes=10.0, axes_json=others)) == 13.0, "of an axis of one's own too"


def test_a_row_tells_how_batches_were_loaded_and_what_is_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # otherwise --non-blocking is refused
    options: dict[str, Any] = {"loader_workers": 2, "cast_on_device": True, "channels_last": True, "norm": "group"}
    run = RunConfig(model="resnet", size="tiny", nproc=1, non_blocking=True, **options)
    got = describe(resolve(run), Requested(), Rank.from_env(), torch.device("cpu"))
    assert {name: got[name] for name in options} == options
    assert (got["non_blocking"], got["pin_memory"], got["offload"]) == (True, False, "none")


def test_a_row_tells_what_deepspeed_keeps_on_the_host() -> None:
    file = str(Path(__file__).resolve().parents[3] / "ds_configs" / "zero3_offload.json")
    run = RunConfig(size="tiny", strategy="zero3", nproc=2, engine="deepspeed", ds_config=file)
    got = describe(resolve(run), Requested(), Rank.from_env(), torch.device("cpu"))
    assert got["offload"] == "optimizer+parameters"


@pytest.mark.parametrize(
    ("requested", "stage"),
    [
        (Requested(), None),
        (Requested(strategy="ddp"), 0),
        (Requested(strategy="zero3", nproc=1), 3),
        (Requested(strategy="3d"), 0),
        (Requested(layout="dp2.tp2/zero2"), 2),
        (Requested(strategy="zero1", layout="dp2/zero1"), 1),
    ],
)
def test_the_stage_that_was_requested_is_that_of_what_was_typed(requested: Requested, stage: int | None) -> None:
    work = resolve(RunConfig(size="tiny", strategy="zero2", nproc=2))
    row = describe(work, requested, Rank.from_env(), torch.device("cpu"))
    assert (row["zero_requested"], row["zero"]) == (stage, 2)
