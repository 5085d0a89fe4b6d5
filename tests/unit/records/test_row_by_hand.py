"""Every column of a row, computed by hand from what made-up ranks measured.

Four ranks of two stages, no two of which measured the same: a row that takes the wrong rank, the mean for the sum or
the step before shows it. Columns that come from elsewhere name the test that covers them.
"""

import json
import time
from dataclasses import fields, replace
from fractions import Fraction as F
from pathlib import Path
from typing import Any

import pytest
import torch

from paralab.axes.sent import predicted_sent
from paralab.benchmarks.case.communication import sent_columns
from paralab.benchmarks.case.logged import write_steps
from paralab.benchmarks.case.measured import RankResult
from paralab.benchmarks.case.row import _efficiency_columns, _memory_columns, record_of
from paralab.benchmarks.case.run import run_case
from paralab.benchmarks.run_start import summary
from paralab.console.clock import Moment
from paralab.layout import Layout
from paralab.measure import roofline
from paralab.measure.compiling import Compiled
from paralab.measure.ledger import CommRow
from paralab.measure.span import SpanRecord
from paralab.measure.split import Split
from paralab.measure.steady import summarise
from paralab.measure.telemetry import Telemetry
from paralab.models import mixtral
from paralab.options.config import RunConfig
from paralab.parity.result import ParityResult
from paralab.parity.tolerances import TOLERANCES
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.failure import Failure
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.changes import SCHEMA
from paralab.records.describe import failed
from paralab.records.environment import Environment
from paralab.records.log import LogRecord, StepRecord
from paralab.records.reading import read
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.telemetry import telemetry_columns
from paralab.records.writing import append

TESTS = Path(__file__).resolve().parents[2]

# --- the run: GPT-2 of 8 layers, 32 wide, 16 tokens, 257 words padded to 320, on two data ranks times two stages

RUN = RunConfig(
    size="tiny",
    layout=Layout.parse("dp2.pp2/1f1b/mb2"),
    accumulation=2,
    global_batch_size=16,
    checkpointing="full",
    warmup=2,
    steps=15,  # of which 12 were taken, as where a loss is reached
    seed=7,
    loader_workers=1,
    cast_on_device=True,
    data="alice",
)
WORK = resolve(RUN)
CHUNKS = 4  # passes of one rank in a step: 2 micro-batches x 2 accumulated
BLOCK = 12 * 32 * 32 + 13 * 32  # parameters: four products, their biases and two norms
FIRST_STAGE = 4 * BLOCK + 320 * 32 + 16 * 32  # the tables of words and places
LAST_STAGE = 4 * BLOCK + 320 * 32 + 2 * 32  # the output layer and the last norm
PARAMETERS = FIRST_STAGE + LAST_STAGE - 320 * 32  # one table of words, on both stages
OUTSIDE = PARAMETERS - 8 * BLOCK  # tables and the last norm
COUNTS = 4 * (8 * 12 + 4)  # bytes: AdamW counts the steps of each tensor
FLOPS_PER_SAMPLE = 16 * (6 * (8 * 12 * 32 * 32 + 257 * 32) + 12 * 8 * 32 * 16)
# Again, a token and block: query, key and value; both products of attention; the projection; the first of the MLP.
FLOPS_AGAIN_PER_SAMPLE = 16 * 8 * (2 * 3 * 32 * 32 + 4 * 16 * 32 + 2 * 32 * 32 + 2 * 4 * 32 * 32)

# --- what its ranks measured

# The slowest rank of each of the 12 steps. The first is warm-up by the rule, and the others are kept, in order of
# size: 0.96 0.98 0.99 1.00 1.00 1.01 1.02 1.02 1.03 1.04 1.05
SLOWEST_S = [8.0, 1.00, 1.04, 0.98, 1.02, 1.01, 0.99, 1.03, 1.00, 1.02, 0.96, 1.05]
KEPT_S = sum(SLOWEST_S[1:])  # of 11 steps
BUSIEST, FULLEST = 2, 1  # the ranks that send most, and hold most


def _step_times_s(rank: int) -> list[float]:
    """Another rank is the slowest in each step; the others take less, each another time."""
    return [slow - 0.01 * ((step + rank) % 4) for step, slow in enumerate(SLOWEST_S)]


def _telemetry(rank: int) -> Telemetry:
    return Telemetry(
        window_s=20.0,
        samples=40,
        sampler_share=0.001,
        gpu_utilisation_mean_share=0.2 + 0.1 * rank,
        gpu_utilisation_max_share=0.5 + 0.1 * rank,
        gpu_used_mean_bytes=1000 + 100 * rank,
        gpu_used_max_bytes=2000 + 100 * rank,
        gpu_power_mean_w=300.0 + 10 * rank,
        gpu_power_max_w=400.0 + 10 * rank,
        gpu_clock_mean_mhz=1500.0 + 10 * rank,
        gpu_clock_max_mhz=1900.0 + 10 * rank,
        gpu_temperature_mean_c=50.0 + rank,
        gpu_temperature_max_c=60.0 + rank,
        gpu_throttle_reasons=("power cap; software thermal", "", "power cap", "")[rank],
        gpu_energy_j=1000.0 * (1 + rank),
        cpu_utilisation_mean_share=0.05 * (1 + rank),
        cpu_utilisation_max_share=0.2 + 0.01 * rank,
        cpu_energy_j=70.0 + rank,
    )


def _comm(rank: int) -> list[CommRow]:
    """Rows as a ledger gives them; each rank sends another number of megabytes over dp."""
    size = {0: 1_000_000, 1: 2_000_000, 2: 4_000_000, 3: 3_000_000}[rank]
    scattered = {0: 9_000_000, 1: 300, 2: 300, 3: 300}[rank]  # by ring algorithms rank 0 would send most
    return [
        CommRow("dp", "all_reduce", 2, calls=2 + rank, payload_bytes=size, ring_bytes=F(size), wire_bytes=F(size)),
        CommRow("dp", "reduce_scatter", 2, calls=1, payload_bytes=600, ring_bytes=F(scattered), wire_bytes=F(600)),
        CommRow("other", "all_gather", 2, calls=9, payload_bytes=800, ring_bytes=F(400), wire_bytes=F(400)),
        CommRow("pp", "recv", 2, calls=5, payload_bytes=700, ring_bytes=F(0), wire_bytes=F(0)),
        CommRow("pp", "send", 2, calls=4, payload_bytes=500, ring_bytes=F(500), wire_bytes=F(500)),
        CommRow("world", "all_reduce", 4, calls=1, payload_bytes=8, ring_bytes=F(12), wire_bytes=F(12)),
        CommRow("world", "barrier", 4, calls=1, payload_bytes=0, ring_bytes=F(0), wire_bytes=F(0)),
    ]


def _spans(rank: int) -> list[SpanRecord]:
    """The step runs from 10 to 20 s; the ranks compute for 9, 8, 6 and 5 s of it."""
    start, busy = {0: (10.0, 9.0), 1: (10.5, 8.0), 2: (11.0, 6.0), 3: (15.0, 5.0)}[rank]
    common = {"step": 14, "rank": rank, "stage": rank // 2, "micro_batch": 0}
    return [
        SpanRecord(kind="F", start_s=start, end_s=start + 2.0, **common),
        SpanRecord(kind="B", start_s=start + 2.0, end_s=start + busy, **common),
    ]


def _splits(rank: int) -> list[Split]:
    """Two steps of 1 s. Own: 0.4, 0.5, 0.5 and 0.7 s, then 0.4, 0.5, 0.7 and 0.9 s; rank 3 then waits for data."""
    first, second = (0.6, 0.5, 0.5, 0.3)[rank], (0.6, 0.5, 0.3, 0.1)[rank]
    return [
        Split(1.0, first, data_s=0.02, waits_s={"pp": first - 0.1, "dp": 0.1}),
        Split(1.0, second, data_s=(0.05, 0.06, 0.07, 0.35)[rank], waits_s={"pp": second}),
    ]


def _result(rank: int) -> RankResult:
    return RankResult(
        losses=[5.0 - 0.1 * step + rank for step in range(14)],
        grad_norms=[2.0 - 0.1 * step + rank for step in range(14)],
        step_times_s=_step_times_s(rank),
        data_waits_s=[0.05 * (1 + (rank + 1) % 4)] * 12,
        telemetry=_telemetry(rank),
        comm=_comm(rank),
        loads={"first": [rank % 2, 1, rank, 0, rank // 2], "second": [1, 1, 1, 0, 0]},
        spans=_spans(rank),
        memory={
            "parameters": 11 + rank,
            "gradients": 21,
            "optimizer": 31,
            "activations": 41,
            "buffers": 61,
            "other": 51,
        },
        tensors_peak_bytes={0: 500, 1: 900, 2: 700, 3: 600}[rank],
        state_peak_bytes={0: 300, 1: 310, 2: 330, 3: 320}[rank],
        process_peak_bytes={0: 5000, 1: 7000, 2: 9000, 3: 8000}[rank],
        gpu_peak_bytes=((100, 900), (400, 600), (200, 800), (300, 700))[rank],
        splits=_splits(rank),
        splits_from=14,
        compiled=Compiled({0: 3.0, 1: 5.0, 2: 4.0, 3: 2.0}[rank], graph_breaks=rank, recompiles=7 - rank),
        peak_flops=(1 + rank) * 1e9,
        peak_source=f"measured: on rank {rank}",
    )


RESULTS = [_result(rank) for rank in range(4)]
STARTED = replace(Moment.now(), epoch_s=1_700_000_000.25, monotonic_s=time.monotonic() - 100.0)
REQUESTED = Requested(
    strategy="pipeline",
    layout="dp2.pp2/zero1",
    engine="auto",
    nproc=8,
    precision="bf16",
    command="paralab run --x",
    until_decided_percent=2.0,
    group="sweep",
    repeat=3,
    launcher="torchrun",
    started=STARTED,
    run_id="abc",
)
PARITY = ParityResult(3, 1e-6, 2e-6, 3e-3, "head.weight", TOLERANCES["fp32"])
ENVIRONMENT = Environment(
    git_commit="c0ffee",
    git_dirty=True,
    paralab_version="1",
    python_version="2",
    torch_version="3",
    deepspeed_version="4",
    accelerate_version="5",
    transformers_version="6",
    cuda_version="7",
    nccl_version="8",
    driver_version="9",
    gpu_name="GPU X",
    gpu_count=5,
    gpu_power_limit_w=350.0,
    cpu_model="CPU X",
    cores_allowed=2.5,
    link_mbit_per_s=80.0,
    threads=99,
    host_hash="abcdef",
)

# --- what its row has to say

SAMPLES_PER_S = 16 * 11 / KEPT_S
TFLOPS = FLOPS_PER_SAMPLE * SAMPLES_PER_S / 4 / 1e12  # of one device
PEAK_TFLOPS = (1 + 2 + 3 + 4) / 4 * 1e9 / 1e12
BOUNDARY = 2 * 16 * 32 * 4  # bytes of one micro-batch between stages: 2 samples, fp32

MEASURED: dict[str, Any] = {
    # timing
    "startup_s": 1.5,
    "compile_s": 5.0,
    "graph_breaks": 3,
    "recompiles": 7,
    "warmup_steps": 2 + 1,
    "warmup_rule": "first 2, then mser, clipped at 3 mad, at most half",
    "measured_steps": 11,
    "steady": True,
    "step_time_p50_s": 1.01,  # the 6th of 11
    "step_time_p50_low_s": 0.98,  # the 2nd: fewer than two values below the median happen once in 85 times
    "step_time_p50_high_s": 1.04,
    "step_time_p95_s": 1.045,  # of ten gaps the 9.5th: between the 10th and the 11th
    "step_time_p99_s": 1.049,
    "step_time_mad_s": 0.02,  # from 1.01: 0 .01 .01 .01 .01 .02 .02 .03 .03 .04 .05
    "samples_per_s": SAMPLES_PER_S,
    "samples_per_s_per_device": SAMPLES_PER_S / 4,
    "tokens_per_s": SAMPLES_PER_S * 16,
    "tokens_per_s_per_device": SAMPLES_PER_S * 16 / 4,
    "data_wait_share": 12 * 0.2 / sum(_step_times_s(2)),  # rank 2 waits longest
    "exposed_comm_share": (0.6 + 0.5 + 0.4 + 0.2) / 4,
    "straggler_ratio": 1.6 / 1.0,  # of the median of the others
    "slowest_rank": 3,
    "slowest_step": 15,
    "slowest_behind_s": 0.9 - 0.5,
    "slowest_cause": "data",  # 0.29 s longer than the others; it computes 0.1 s longer
    # of rank 3, the mean of both steps; a schedule of two stages has a longer bubble than it waits over pp
    "step_parts_json": '{"compute": 0.615, "data": 0.185, "bubble": 0.15, "comm_pp": 0.0, "comm_dp": 0.05}',
    # efficiency
    "tokens_per_step": 16 * 16,
    "model_flop_per_step": 16.0 * FLOPS_PER_SAMPLE,
    "model_tflops_per_device": TFLOPS,
    "flop_formula": "6N+12LHS",
    "peak_tflops_per_device": PEAK_TFLOPS,
    "peak_source": "measured: on rank 0",
    "mfu": TFLOPS / PEAK_TFLOPS,
    "hfu": TFLOPS / PEAK_TFLOPS * (1 + FLOPS_AGAIN_PER_SAMPLE / FLOPS_PER_SAMPLE),
    "energy_j": 1000.0 + 2000.0 + 3000.0 + 4000.0,
    "energy_per_token_j": 10_000 / (12 * 16 * 16),
    "energy_source": "nvml",
    "gpu_utilisation_mean_share": 0.35,
    "gpu_utilisation_max_share": 0.8,
    "gpu_power_mean_w": 315.0,
    "gpu_power_max_w": 430.0,
    "gpu_clock_mean_mhz": 1515.0,
    "gpu_clock_max_mhz": 1930.0,
    "gpu_temperature_mean_c": 51.5,
    "gpu_temperature_max_c": 63.0,
    "gpu_throttle_reasons": "power cap; software thermal",
    "throttled": True,
    "cpu_utilisation_mean_share": (0.05 + 0.1 + 0.15 + 0.2) / 2,  # of the same cores on each of two nodes
    "cpu_utilisation_max_share": (0.2 + 0.21 + 0.22 + 0.23) / 2,
    # memory
    "gpu_allocated_peak_bytes": 400,
    "gpu_reserved_peak_bytes": 900,
    "gpu_used_mean_bytes": 1150,
    "gpu_used_max_bytes": 2300,
    "memory_parameters_bytes": 11 + FULLEST,
    "memory_gradients_bytes": 21,
    "memory_optimizer_bytes": 31,
    "memory_activations_bytes": 41,
    "memory_buffers_bytes": 61,
    "memory_other_bytes": 51,
    "memory_tensors_peak_bytes": 900,
    "process_peak_bytes": 9000,
    "memory_state_peak_bytes": 330,
    "expert_imbalance": 6 / ((2 + 4 + 6 + 0) / 4),
    "dropped_share": 2 / (14 + 12),
    "predicted_state_bytes": 16 * max(FIRST_STAGE, LAST_STAGE) + 4 * 50,  # and a count of steps for each tensor
    # communication, of rank 2: stage 1
    "comm_dp_calls": (2 + BUSIEST) + 1,
    "comm_dp_payload_bytes": 4_000_000 + 600,
    "comm_dp_ring_bytes": 4_000_000 + 300,
    "comm_dp_sent_bytes": 4_000_000 + 600,
    "comm_dp_predicted_ring_bytes": 2 * (1 / 2) * 4 * LAST_STAGE,  # all gradients, over two ranks
    "comm_dp_predicted_sent_bytes": 2 * (1 / 2) * 4 * LAST_STAGE,
    "comm_tp_calls": None,
    "comm_tp_payload_bytes": None,
    "comm_tp_ring_bytes": None,
    "comm_tp_sent_bytes": None,
    "comm_tp_predicted_ring_bytes": None,
    "comm_tp_predicted_sent_bytes": None,
    "comm_pp_calls": 5 + 4,
    "comm_pp_payload_bytes": 700 + 500,
    "comm_pp_ring_bytes": 500,
    "comm_pp_sent_bytes": 500,
    "comm_pp_predicted_ring_bytes": CHUNKS * BOUNDARY + 4 * 320 * 32,  # and the gradient of the table of words
    "comm_pp_predicted_sent_bytes": CHUNKS * BOUNDARY + 4 * 320 * 32,
    "comm_world_calls": 2,
    "comm_world_payload_bytes": 8,
    "comm_world_ring_bytes": 12,
    "comm_world_sent_bytes": 12,
    "comm_world_predicted_ring_bytes": 2 * (3 / 4) * 2 * 4,  # loss and gradient norm, over four ranks
    "comm_world_predicted_sent_bytes": 2 * (3 / 4) * 2 * 4,
    "comm_all_reduce_calls": (2 + BUSIEST) + 1,
    "comm_all_reduce_payload_bytes": 4_000_000 + 8,
    "comm_all_gather_calls": 9,
    "comm_all_gather_payload_bytes": 800,
    "comm_reduce_scatter_calls": 1,
    "comm_reduce_scatter_payload_bytes": 600,
    "comm_all_to_all_calls": None,
    "comm_all_to_all_payload_bytes": None,
    "comm_broadcast_calls": None,
    "comm_broadcast_payload_bytes": None,
    "comm_send_calls": 4,
    "comm_send_payload_bytes": 500,
    # pipeline
    "bubble_share": (0.1 + 0.2 + 0.4 + 0.5) / 4,
    "bubble_theory_share": 1 / (CHUNKS + 1),
    # correctness
    "loss_first": 5.0,
    "loss_last": 5.0 - 1.3,
    "grad_norm_last": 2.0 - 1.3,
    "loss_difference_max": 1e-6,
    "grad_norm_difference_max": 2e-6,
    "parameter_difference_max": 3e-3,
    "parity": True,
    "parity_precision": "fp32",
    "parity_scope": "whole",
    "parity_result": "passed",
}
DESCRIBED: dict[str, Any] = {
    # identity
    "run_id": "abc",
    "group": "sweep",
    "repeat": 3,
    "until_decided_percent": 2.0,
    "started_at": "2023-11-14T22:13:20.250+00:00",
    "status": "ok",
    "command": "paralab run --x",
    # requested and realised
    "strategy_requested": "pipeline",
    "strategy": "dp+pp",
    "layout_requested": "dp2.pp2/zero1",
    "layout": "dp2.pp2/1f1b/mb2",
    "engine_requested": "auto",
    "engine": "torch",
    "launcher": "torchrun",
    "device": "cpu",
    "backend": None,  # of ranks that have not met
    "world_size_requested": 8,
    "world_size": 4,
    "nodes": 2,  # three processes on the first, one on the second
    "dp": 2,
    "dp_shard": 1,
    "ep": 1,
    "cp": 1,
    "cp_style": None,
    "tp": 1,
    "pp": 2,
    "zero_requested": 1,
    "zero": 0,
    "schedule": "1f1b",
    "micro_batches": 2,
    "sequence_parallel": False,
    "local_steps": None,
    "grad_compression": "none",
    "outer_optimizer": None,
    "outer_fragments": None,
    "outer_overlap": None,
    "precision_requested": "bf16",
    "precision": "fp32",
    "checkpointing": "full",
    "compile": "none",
    "offload": "none",
    "channels_last": None,
    "loader_workers": 1,
    "pin_memory": False,
    "non_blocking": False,
    "cast_on_device": True,
    # work
    "model": "gpt2",
    "size": "tiny",
    "parameters": PARAMETERS,
    "unit": "tokens",
    "sequence_length": 16,
    "image_size_px": None,
    "n_classes": None,
    "norm": None,
    "residual": None,
    "micro_batch_size": 2,
    "accumulation": 2,
    "global_batch_size": 16,
    "optimizer": "adamw",
    "seed": 7,
    "data": "alice",
    "tokenizer": "bytes",
    "vocabulary": 257,
}
# Columns that are known elsewhere, and the test that reads them there.
ELSEWHERE = {
    "optimizer_8bit_share": "unit/axes/test_eight_bits.py::test_the_row_says_how_much_is_in_eight_bits",
    "failed_rank": "unit/records/test_row_by_hand.py::test_a_run_that_failed",
    "failed_step": "unit/records/test_row_by_hand.py::test_a_run_that_failed",
    "reason": "unit/records/test_row_by_hand.py::test_a_run_that_failed",
    "wall_s": "unit/records/test_row_by_hand.py::test_the_time_since_the_command",
    "model_file": "unit/models/test_files.py::test_a_row_names_the_file_and_its_content",
    "model_sha256": "unit/models/test_files.py::test_a_row_names_the_file_and_its_content",
    "data_sha256": "unit/records/test_row_by_hand.py::test_the_data_are_known_by_their_hash",
    "schema": "unit/records/test_row_by_hand.py::test_a_row_goes_through_a_file",
    "axes_json": "unit/axes/test_a_new_axis.py::test_a_row_has_its_columns",
    "comm_detail_json": "unit/records/test_row_by_hand.py::test_calls_by_axis_and_collective",
    "restarts": "unit/training/test_goodput.py::test_a_start_after_a_kill_counts_what_was_lost",
    "recovery_s": "unit/training/test_goodput.py::test_a_start_after_a_kill_counts_what_was_lost",
    "steps_lost": "unit/training/test_goodput.py::test_a_start_after_a_kill_counts_what_was_lost",
    **dict.fromkeys(
        ("until_loss", "steps_to_loss", "samples_to_loss", "time_to_loss_s"),
        "unit/benchmarks/report/test_to_loss.py::test_a_run_ends_where_it_reaches_its_loss",
    ),
    **dict.fromkeys(
        ("epochs_requested", "epochs"),
        "unit/training/test_epochs.py::test_a_run_stopped_by_a_signal_goes_on_to_its_epochs",
    ),
    "goodput_share": "unit/training/test_goodput.py::test_goodput_is_the_time_in_steps_that_were_kept",
    **{
        f"comm_{axis}_{counted}": f"unit/records/test_row_by_hand.py::{test}"
        for axes, test in (
            (("dp_shard", "dp_replicate"), "test_bytes_within_and_between_groups_of_data_ranks"),
            (("cp", "dp_cp"), "test_bytes_over_context_ranks_and_over_data_and_context_ranks"),
            (("ep", "edp"), "test_bytes_among_ranks_that_divide_experts_and_among_those_that_share_them"),
        )
        for axis in axes
        for counted in (
            "calls",
            "payload_bytes",
            "ring_bytes",
            "sent_bytes",
            "predicted_ring_bytes",
            "predicted_sent_bytes",
        )
    },
}


def _row(work: Work, results: list[RankResult], parity_result: ParityResult | None, **requested: Any) -> RunRecord:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "read", lambda device_index=0: ENVIRONMENT)
        mesh = Mesh(work.layout, torch.device("cpu"))
        rank = Rank(0, 4, 0, 3, "torchrun")
        scope = "whole" if parity_result else None
        return record_of(work, replace(REQUESTED, **requested), rank, mesh, results, parity_result, 1.5, scope=scope)


@pytest.fixture(scope="module")
def row() -> RunRecord:
    return _row(WORK, RESULTS, PARITY)


@pytest.mark.parametrize("column", [*MEASURED, *DESCRIBED])
def test_a_column_is_what_it_is_by_hand(row: RunRecord, column: str) -> None:
    expected = (MEASURED | DESCRIBED)[column]
    assert getattr(row, column) == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("column", [f.name for f in fields(Environment)])
def test_the_environment_is_as_it_was_read(row: RunRecord, column: str) -> None:
    assert getattr(row, column) == (vars(ENVIRONMENT) | {"threads": torch.get_num_threads()})[column]


def test_every_column_is_computed_by_hand_or_names_its_test() -> None:
    covered = [*MEASURED, *DESCRIBED, *(f.name for f in fields(Environment)), *ELSEWHERE]
    assert sorted(covered) == sorted(f.name for f in fields(RunRecord))
    for place in ELSEWHERE.values():
        file, name = place.split("::")
        assert f"def {name}(" in (TESTS / file).read_text(), place


def test_a_row_goes_through_a_file(row: RunRecord, tmp_path: Path) -> None:
    append(tmp_path / "rows.csv", row)
    assert read(tmp_path / "rows.csv") == [row]
    assert row.schema == SCHEMA


def test_calls_by_axis_and_collective(row: RunRecord) -> None:
    assert row.comm_detail_json is not None
    assert json.loads(row.comm_detail_json) == {
        "dp": {
            "all_reduce": {"calls": 4, "payload_bytes": 4_000_000},
            "reduce_scatter": {"calls": 1, "payload_bytes": 600},
        },
        "other": {"all_gather": {"calls": 9, "payload_bytes": 800}},
        "pp": {"recv": {"calls": 5, "payload_bytes": 700}, "send": {"calls": 4, "payload_bytes": 500}},
        "world": {
            "all_reduce": {"calls": 1, "payload_bytes": 8},
            "barrier": {"calls": 1, "payload_bytes": 0},
        },
    }


def test_the_data_are_known_by_their_hash(row: RunRecord) -> None:
    assert row.data_sha256 == WORK.dataset().sha256


@pytest.fixture(scope="module")
def alone() -> RunRecord:
    """The row of one process that trains on images, on a CPU."""
    work = resolve(RunConfig(model="resnet", size="tiny", nproc=1, global_batch_size=4, warmup=0, steps=12))
    telemetry = Telemetry(window_s=1.0, samples=2, sampler_share=0.0, cpu_energy_j=70.0, cpu_utilisation_mean_share=0.5)
    splits = [Split(1.0, 0.0, data_s=0.1)]
    result = replace(RESULTS[0], telemetry=telemetry, comm=[], spans=[], splits=splits, gpu_peak_bytes=(None, None))
    return _row(work, [result], None)


ALONE: dict[str, Any] = {
    "warmup_steps": 1,
    "warmup_rule": "mser, clipped at 3 mad, at most half",
    "tokens_per_s": None,
    "tokens_per_step": None,
    "energy_per_token_j": None,
    "tokens_per_s_per_device": None,
    "unit": "images",
    "exposed_comm_share": 0.0,
    "straggler_ratio": 1.0,
    "slowest_rank": None,
    "slowest_step": None,
    "slowest_behind_s": None,
    "slowest_cause": None,
    "step_parts_json": '{"compute": 0.9, "data": 0.1}',
    "energy_j": 70.0,
    "energy_source": "rapl",
    "cpu_utilisation_mean_share": 0.5,
    "throttled": None,
    "gpu_throttle_reasons": None,
    "gpu_power_mean_w": None,
    "gpu_used_mean_bytes": None,
    "gpu_allocated_peak_bytes": None,
    "gpu_reserved_peak_bytes": None,
    "comm_detail_json": None,
    **{column: None for column in MEASURED if column.startswith(("comm_", "bubble_"))},
    "parity": None,
    "parity_precision": None,
    "parity_scope": None,
    "parity_result": None,
    "loss_difference_max": None,
}


@pytest.mark.parametrize("column", ALONE)
def test_a_column_of_a_process_alone(alone: RunRecord, column: str) -> None:
    assert getattr(alone, column) == ALONE[column]


def test_the_time_since_the_command(row: RunRecord) -> None:
    assert row.wall_s is not None and 100.0 <= row.wall_s <= (STARTED.elapsed_s or 0.0)


def test_what_is_not_computed_again_is_no_further_use_of_the_device(alone: RunRecord) -> None:
    assert alone.hfu == alone.mfu is not None


@pytest.mark.parametrize(("layout", "ring", "gloo"), [("dp4/zero2", 1.5, 2.25), ("dp4/zero1", 2.25, 2.25)])
def test_predicted_bytes_are_those_of_the_backend(layout: str, ring: float, gloo: float) -> None:
    """Of 4 bytes a parameter; rows of (2, 3, ...) are padded to four, which this model has none of."""
    work = resolve(RunConfig(size="tiny", layout=Layout.parse(layout), global_batch_size=16))
    small = 2 * (3 / 4) * 2 * 4  # loss and gradient norm, on the same axis
    comm = [CommRow("dp", "all_reduce", 4, 1, 1, F(1), F(1))]
    got = sent_columns(work, [RankResult(comm=comm)] * 4, "cpu")
    assert got["comm_dp_predicted_ring_bytes"] == ring * 4 * PARAMETERS + small
    assert got["comm_dp_predicted_sent_bytes"] == gloo * 4 * PARAMETERS + small


def test_bytes_within_and_between_groups_of_data_ranks() -> None:
    """Within a group of two all parameters are gathered and all gradients scattered; between groups, half of these."""
    work = resolve(RunConfig(size="tiny", layout=Layout.parse("dp4/zero2/shard2"), global_batch_size=16))
    comm = [
        CommRow("dp_replicate", "all_reduce", 2, 1, 40, F(40), F(41)),
        CommRow("dp_shard", "all_gather", 2, 2, 50, F(25), F(26)),
        CommRow("dp_shard", "reduce_scatter", 2, 3, 60, F(30), F(61)),
    ]
    got = sent_columns(work, [RankResult(comm=comm)] * 4, "cpu")
    counted = ("calls", "payload_bytes", "ring_bytes", "sent_bytes")
    assert [got[f"comm_dp_shard_{name}"] for name in counted] == [5, 110, 55, 87]
    assert [got[f"comm_dp_replicate_{name}"] for name in counted] == [1, 40, 40, 41]
    for kind, scattered in (("ring", 1 / 2), ("sent", 2 * 1 / 2)):  # gloo scatters as it reduces
        assert got[f"comm_dp_shard_predicted_{kind}_bytes"] == (1 / 2 + scattered) * 4 * PARAMETERS
        assert got[f"comm_dp_replicate_predicted_{kind}_bytes"] == 2 * (1 / 2) * 4 * PARAMETERS / 2
        assert got[f"comm_dp_predicted_{kind}_bytes"] == 2 * (3 / 4) * 2 * 4  # loss and gradient norm
    assert got.keys() - {"comm_detail_json"} < {f.name for f in fields(RunRecord)}


def test_bytes_over_context_ranks_and_over_data_and_context_ranks() -> None:
    """Keys and values go one hop, and back with their gradients; those of parameters are reduced over four ranks."""
    work = resolve(RunConfig(size="tiny", layout=Layout.parse("dp2.cp2"), global_batch_size=16))
    comm = [
        CommRow("cp", "send", 2, 2, 40, F(40), F(41)),
        CommRow("dp_cp", "all_reduce", 4, 3, 60, F(90), F(91)),
    ]
    got = sent_columns(work, [RankResult(comm=comm)] * 4, "cpu")
    counted = ("calls", "payload_bytes", "ring_bytes", "sent_bytes")
    assert [got[f"comm_cp_{name}"] for name in counted] == [2, 40, 40, 41]
    assert [got[f"comm_dp_cp_{name}"] for name in counted] == [3, 60, 90, 91]
    keys = 8 * 8 * 32 * 4  # (samples, positions of a rank, width) in fp32, in each of eight layers
    for kind in ("ring", "sent"):
        assert got[f"comm_cp_predicted_{kind}_bytes"] == 8 * 3 * 2 * keys
        assert got[f"comm_dp_cp_predicted_{kind}_bytes"] == 2 * (3 / 4) * (4 * PARAMETERS + 2 * 4)
    assert got.keys() - {"comm_detail_json"} < {f.name for f in fields(RunRecord)}


def test_bytes_among_ranks_that_divide_experts_and_among_those_that_share_them() -> None:
    """Rows go to their experts, and back, and so do their gradients; what is no expert is reduced over all four."""
    work = resolve(RunConfig(model="mixtral", size="tiny", layout=Layout.parse("dp4.ep2"), global_batch_size=16))
    comm = [CommRow("ep", "all_to_all", 2, 2, 40, F(40), F(41)), CommRow("edp", "all_reduce", 2, 3, 60, F(90), F(91))]
    got = sent_columns(work, [RankResult(comm=comm)] * 4, "cpu")
    counted = ("calls", "payload_bytes", "ring_bytes", "sent_bytes")
    assert [got[f"comm_ep_{name}"] for name in counted] == [2, 40, 40, 41]
    assert [got[f"comm_edp_{name}"] for name in counted] == [3, 60, 90, 91]
    rows = 4 * 16 * 2 * 32 * 4  # (samples, positions, experts of a token, width) in fp32, in each of eight layers
    experts = 8 * 4 * 3 * 24 * 32 * 4  # (layers, experts of a rank, matrices, width, width)
    others = mixtral.parameters(mixtral.SIZES["tiny"]) - 2 * experts // 4 + 2 * (320 - 257) * 32  # rows of padding
    for kind in ("ring", "sent"):
        assert got[f"comm_ep_predicted_{kind}_bytes"] == 8 * (4 * rows + 8 * 8) / 2
        assert got[f"comm_edp_predicted_{kind}_bytes"] == experts
        assert got[f"comm_dp_predicted_{kind}_bytes"] == 2 * (3 / 4) * (4 * others + 2 * 4)
    assert got.keys() - {"comm_detail_json"} < {f.name for f in fields(RunRecord)}


@pytest.mark.parametrize(("checkpointing", "peak_flops"), [("none", 0.99), ("full", 1.05)])
def test_a_peak_that_the_run_exceeds_is_no_peak(checkpointing: str, peak_flops: float) -> None:
    """Also where only what is computed again exceeds it. peak_flops: over what the model needs."""
    work = replace(WORK, run=replace(RUN, checkpointing=checkpointing))
    results = [replace(r, peak_flops=peak_flops * TFLOPS * 1e12) for r in RESULTS]
    got = _efficiency_columns(work, results, summarise(SLOWEST_S), SLOWEST_S)
    assert (got["mfu"], got["hfu"], got["peak_source"]) == (None, None, "measured: on rank 0; exceeded by the run")
    assert got["peak_tflops_per_device"] == pytest.approx(peak_flops * TFLOPS)


@pytest.mark.parametrize(("measured", "left"), [([1e15, 1.0], 0), ([1.0, 1.0], 0), ([0.0, 1e15], 1)])
def test_a_peak_is_measured_again_where_a_run_exceeds_it(
    measured: list[float], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roofline, "_measured", {})
    monkeypatch.setattr(roofline, "_measure", lambda *args, **kwargs: roofline.Peak(measured.pop(), "measured"))
    work = resolve(RunConfig(size="tiny", nproc=1, global_batch_size=2, warmup=0, steps=2, learning_rate=1e-3))
    rank, mesh = Rank(0, 1, 0, 1, "python"), Mesh(work.layout, torch.device("cpu"))
    row = run_case(work, requested=REQUESTED, rank=rank, mesh=mesh)
    assert len(measured) == left
    if row.peak_tflops_per_device == 1e3:
        assert row.mfu is not None and 0 < row.mfu < 1 and row.peak_source == "measured"
    else:
        assert (row.mfu, row.peak_source) == (None, "measured; exceeded by the run")


def test_the_short_form_of_a_row(row: RunRecord, alone: RunRecord) -> None:
    why = """\
  where the time of rank 3 goes: 62% computing, 18% waiting for data, 15% in the
    bubble, 5% communication over dp
  rank 3 is the slowest: it takes 1.6 times as long as the others, most at step
    15: 400 ms more, waiting for data
"""
    assert why in summary(row, "rows.csv")
    assert f" s, {MEASURED['mfu']:.0%} of the peak (measured: on rank 0)\n" in summary(row, "rows.csv")
    sent = (4_000_000 + 600 + 500 + 12) / 2**20
    assert f"  peak 900 B   sent {sent:.2f} MiB a step, of the rank with most\n" in summary(row, "rows.csv")
    assert "   sent 0 B" in summary(alone, "")
    assert "slowest" not in summary(replace(row, straggler_ratio=1.2), "") + summary(alone, "")
    assert "where" not in summary(replace(row, step_parts_json=None), "") + summary(alone, "")
    exceeded = replace(row, mfu=None, peak_source="measured: x; exceeded by the run")
    said = " ".join(summary(exceeded, "").split())  # a long line is broken
    assert " s, share unknown of the peak (measured: x; exceeded by the run) " in said


@pytest.mark.parametrize(
    ("options", "per_parameter", "more"),
    [
        ({"layout": "dp4"}, 4 + 4 + 8, COUNTS),  # weight, gradient, two moments
        ({"layout": "dp4", "precision": "fp64"}, 8 + 8 + 16, COUNTS),
        ({"layout": "dp4", "optimizer": "sgd"}, 4 + 4 + 4, 0),
        ({"layout": "dp4", "optimizer": "sgd", "momentum": 0.0}, 4 + 4, 0),
        ({"layout": "dp4/zero1"}, 4 + 4 + 8 / 4, COUNTS),
        # and at the end the whole gradients of what is outside the blocks, of which the shard is counted already; those
        # of the first block are whole before, when there is no shard of these yet
        ({"layout": "dp4/zero2"}, (4 + 4 + 8) / 4, COUNTS + 4 * OUTSIDE * 3 / 4),
        ({"layout": "dp4/zero3"}, (4 + 4 + 8) / 4, COUNTS + 4 * OUTSIDE * 3 / 4),
        ({"layout": "dp4/zero1/shard2"}, 4 + 4 + 8 / 2, COUNTS),
        ({"layout": "dp4/zero3/shard2"}, (4 + 4 + 8) / 2, COUNTS + 4 * OUTSIDE * 1 / 2),
    ],
)
def test_predicted_state_by_hand(options: dict[str, Any], per_parameter: float, more: float) -> None:
    work = resolve(RunConfig(size="tiny", global_batch_size=16, **options))
    assert _memory_columns(work, RESULTS, "cpu")["predicted_state_bytes"] == per_parameter * PARAMETERS + more


@pytest.mark.parametrize(("checkpointing", "again"), [("none", 0), ("full", 8), ("2", 4)])
def test_predicted_bytes_of_tensor_parallelism_by_hand(checkpointing: str, again: int) -> None:
    """again: blocks computed again, of which only attention's sum is needed by backward."""
    work = resolve(RunConfig(size="tiny", layout=Layout.parse("tp2"), global_batch_size=4, checkpointing=checkpointing))
    activation = 4 * 16 * 32 * 4  # bytes: 4 samples, 16 tokens, 32 wide, fp32
    sums = 8 * 4 + 1 + again  # of 8 blocks, two in forward and two in backward; of the table of words; again
    words = 4 * 16
    loss = 3 * words * 4 + activation  # largest logit, sum of exponentials, the target's; the gradient of what entered
    got = predicted_sent(work).ring_bytes
    assert got == {"tp": sums * activation + loss + 2 * 4}  # a sum over two ranks sends its size; loss and norm


def test_several_sockets_of_one_machine_are_counted_once() -> None:
    seen = [Telemetry(window_s=1.0, samples=2, sampler_share=0.0, cpu_energy_j=70.0 + rank) for rank in range(4)]
    one, two = (telemetry_columns(seen, nodes=nodes, tokens=None) for nodes in (1, 2))
    assert (one["energy_j"], one["energy_source"]) == (73.0, "rapl")
    assert (two["energy_j"], two["energy_source"]) == (None, None)


def test_the_log_of_a_rank_has_the_numbers_of_each_step() -> None:
    records: list[LogRecord] = []

    class Log:
        def write(self, record: LogRecord) -> None:
            records.append(record)

        def close(self) -> None:
            raise AssertionError("more is written after the steps")

    run = replace(RUN, steps=2, lr_warmup_steps=2, lr_schedule="constant", learning_rate=0.5)
    result = RankResult(losses=[5.0, 4.0, 3.0, 2.0], grad_norms=[0.5, 0.4, 0.3, 0.2])
    result.step_times_s, result.data_waits_s = [1.5, 1.25], [0.1, 0.2]
    write_steps(Log(), replace(WORK, run=run), result)
    columns = {"samples": 16}
    assert records == [
        StepRecord(step=0, loss=5.0, grad_norm=0.5, learning_rate=0.25, measured=False, **columns),
        StepRecord(step=1, loss=4.0, grad_norm=0.4, learning_rate=0.5, measured=False, **columns),
        StepRecord(
            step=2,
            loss=3.0,
            grad_norm=0.3,
            learning_rate=0.5,
            step_time_s=1.5,
            data_wait_s=0.1,
            measured=True,
            **columns,
        ),
        StepRecord(
            step=3,
            loss=2.0,
            grad_norm=0.2,
            learning_rate=0.5,
            step_time_s=1.25,
            data_wait_s=0.2,
            measured=True,
            **columns,
        ),
    ]


def test_a_run_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Environment, "read", lambda device_index=0: ENVIRONMENT)
    got = failed(WORK, REQUESTED, Rank(0, 4, 0, 3, "torchrun"), Failure(3, 5, "oom", "no memory is left"))
    assert (got.status, got.failed_rank, got.failed_step, got.reason) == ("oom", 3, 5, "no memory is left")
    assert (got.layout, got.world_size, got.step_time_p50_s, got.parity) == ("dp2.pp2/1f1b/mb2", 4, None, None)


def test_a_parity_that_failed_is_said_with_what_differs() -> None:
    wrong = replace(PARITY, parameter_difference=1.0)
    said = summary(_row(WORK, RESULTS, wrong), "rows.csv")
    assert "parity FAILED: head.weight differs by 1.0e+00 of what the steps moved it by (allowed 0.01)\n" in said
    right = _row(WORK, RESULTS, PARITY)
    assert "parity passed\n" in summary(right, "")
    assert "parity passed, on 2 of 8 blocks\n" in summary(replace(right, parity_scope="2 of 8 blocks"), "")
    assert "parity not requested\n" in summary(_row(WORK, RESULTS, None), "")
