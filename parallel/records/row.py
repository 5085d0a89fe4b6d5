"""The results of one run: a row in a CSV file, and a log of typed lines for each rank.

`RunRecord` is the only schema of results. The header of a CSV file is its fields in order, and the types of the
cells are its annotations. `SCHEMA` numbers the set of columns and each row holds it: files of an older schema are read
(what they lack is unknown), those of a newer one are refused. Units are in the names, and an empty cell means unknown.
Over ranks, times and memory are the maximum, utilisation is the mean, and throughput is that of the global batch over
the slowest rank. A share is a number from 0 to 1.

Text cells are made harmless and stay exact. Control characters are written as `\\u000a`, a backslash as two, so
one run is always one line; text that a spreadsheet would run as a formula (it begins with = + - @) gets a leading
apostrophe, and so does text that is empty or begins with an apostrophe itself. Reading undoes both.
"""

import csv
import fcntl
import io
import json
import math
import operator
import os
import re
import tempfile
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from paralab.console.outputs import check_writable
from paralab.errors import DataError, Status, UsageError, WriteError
from paralab.layout import Layout, words
from paralab.measure.span import SpanRecord
from paralab.records import sheet
from paralab.records.sheet import Line


@dataclass(frozen=True)
class Change:
    """What one schema changed in the columns of the one before it."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)  # old name: new name


# The first six sets of columns were published without being counted: their rows say 1. From the sixth on every change
# of the columns is a line here, and a test holds the line against the columns.
UNCOUNTED, COUNTED_FROM = 1, 6
_WIRE = [f"comm_{axis}_{kind}" for axis in ("dp", "tp", "pp", "world") for kind in ("", "predicted_")]
_COUNTS = ("calls", "payload_bytes", "ring_bytes", "sent_bytes", "predicted_ring_bytes", "predicted_sent_bytes")
_PARTS_OF_DP = tuple(f"comm_{axis}_{count}" for axis in ("dp_shard", "dp_replicate") for count in _COUNTS)
_OF_CP = tuple(f"comm_{axis}_{count}" for axis in ("cp", "dp_cp") for count in _COUNTS)
_OF_EP = tuple(f"comm_{axis}_{count}" for axis in ("ep", "edp") for count in _COUNTS)
CHANGES: dict[int, Change] = {
    # what was called wire bytes were those of a ring, whatever the backend sent
    7: Change(
        added=tuple(f"{name}sent_bytes" for name in _WIRE),
        renamed={f"{name}wire_bytes": f"{name}ring_bytes" for name in _WIRE},
    ),
    8: Change(added=("memory_buffers_bytes",)),  # until then in memory_other_bytes or memory_activations_bytes
    9: Change(added=("slowest_rank",)),
    10: Change(added=("parity_scope", "parity_result")),  # until then parameter_difference_max was in learning rates
    11: Change(added=("n_classes",)),
    12: Change(added=("dp_shard", *_PARTS_OF_DP)),
    13: Change(added=("axes_json",)),
    14: Change(added=("model_file", "model_sha256")),
    15: Change(added=("local_steps", "grad_compression", "outer_optimizer")),
    16: Change(added=("graph_breaks", "recompiles")),
    17: Change(added=("cp", "cp_style", *_OF_CP)),
    18: Change(),  # status may be "dry run"
    19: Change(added=("ep", *_OF_EP, "expert_imbalance", "dropped_share")),
    20: Change(added=("tokenizer", "vocabulary")),
}
RENAMED = {old: new for number in sorted(CHANGES) for old, new in CHANGES[number].renamed.items()}
SCHEMA = max(CHANGES, default=COUNTED_FROM)

Device = Literal["cpu", "cuda"]

WHOLE, NOT_PROVEN = "whole", "not proven: the reference does not fit"  # scopes of parity; else so much of so much
NOT_CLAIMED = "not claimed"  # of a run that computes something else than one process, on purpose
# A call is counted over one of them.
COMM_AXES = ("dp", "dp_shard", "dp_replicate", "ep", "edp", "cp", "dp_cp", "tp", "pp", "world")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")


def column(meaning: str, *, default: Any = None, required: bool = False) -> Any:
    """Declare a column: what is in its cells, beyond what its name says; `docs/columns.md` is made from it."""
    return field(metadata={"meaning": meaning}) if required else field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, failed ones included. None is unknown.

    Of communication, payload is the size of the tensor of a call: of an all-gather the gathered one, of a
    reduce-scatter the one before scattering. Ring is what a ring algorithm would send for it. Sent is what leaves the
    rank with the backend in use (`paralab.axes.forms`); where that was not measured (NCCL), it is the same as ring.
    Each call is counted over one axis, and all axes together are all that is sent. With `shardN` in the layout,
    dp_shard is what passes within the groups of data ranks, dp_replicate what passes between them, and dp what all
    data ranks exchange in one group, such as batch statistics and the gradients of ZeRO-1. Beside context parallelism
    dp_cp is what data and context ranks exchange in one group: gradients, and what ZeRO gathers.
    """

    schema: int = column("Number of the schema: of the set of columns that the row has", default=SCHEMA)
    run_id: str = column("Name of the run, which its logs have as well", required=True)
    group: str | None = column("Sweep or experiment that the run belongs to")
    repeat: int | None = column("Number of the repeat within the group, from 0")
    started_at: str = column("When the command was started: ISO 8601, UTC", required=True)
    status: Status = column("How the run ended; of a dry run, that it was one", required=True)
    failed_rank: int | None = column("Rank that failed first")
    failed_step: int | None = column("Step in which it failed")
    reason: str | None = column("Why the run failed or was stopped")
    command: str | None = column("Command that runs the same case again")
    restarts: int | None = column("How often a launcher of several nodes restarted the run")
    wall_s: float | None = column("Time from the command to the end of the run")
    goodput_share: float | None = column("Goodput: time spent in steps that were kept, as a fraction of wall_s")
    recovery_s: float | None = column(
        "Sum over all interruptions of the time from the last step before to the next new step"
    )
    steps_lost: int | None = column("Steps that were repeated, because they came after the last checkpoint")

    strategy_requested: str = column("Strategy that was requested; where none was, the one chosen", required=True)
    strategy: str | None = column(
        "Strategy that ran: the requested one if the layout is its own, otherwise the name of what the layout divides"
    )
    layout_requested: str | None = column("Layout that was requested")
    layout: str | None = column("Layout that ran")
    engine_requested: str | None = column("Engine that was requested")
    engine: str | None = column("Engine that ran the steps")
    launcher: str | None = column("Program that started the processes")
    device: Device | None = column("Kind of device")
    backend: str | None = column("Backend of the process group")
    world_size_requested: int | None = column("Number of processes that was requested")
    world_size: int | None = column("Number of processes that ran")
    nodes: int | None = column("Number of machines")
    dp: int | None = column("Degree of data parallelism: number of data ranks")
    dp_shard: int | None = column("Number of ranks that ZeRO divides over: N of shardN, else dp x cp; 1 without ZeRO")
    cp: int | None = column("Degree of context parallelism: number of ranks that share a sequence")
    cp_style: str | None = column("How attention goes over the sequence of all context ranks: ring or ulysses")
    ep: int | None = column("Degree of expert parallelism: data ranks that divide the experts of a layer among them")
    tp: int | None = column("Degree of tensor parallelism: number of tensor ranks")
    pp: int | None = column("Degree of pipeline parallelism: number of pipeline ranks")
    zero_requested: int | None = column("ZeRO stage of the requested layout or strategy")
    zero: int | None = column("ZeRO stage that ran")
    schedule: str | None = column("Pipeline schedule")
    micro_batches: int | None = column("Number of micro-batches in a pipeline")
    sequence_parallel: bool | None = column("Whether tensor ranks split activations along the sequence")
    local_steps: int | None = column(
        "Number of steps that data ranks train apart before they bring their parameters together; empty without"
    )
    grad_compression: str | None = column("How the gradients that data ranks send are compressed, or none")
    outer_optimizer: str | None = column(
        "How data ranks that trained apart come together: average or nesterov; empty where they never do"
    )
    axes_json: str | None = column(
        "{column: value}: columns of axes that have none of their own in this file, such as axes that a user added"
    )
    precision_requested: str | None = column("Precision that was requested")
    precision: str | None = column("Precision of the arithmetic")
    checkpointing: str | None = column(
        "Activation checkpointing: none, full, N (every N-th block is recomputed), or offload (kept by the host)"
    )
    compile: str | None = column("Mode of torch.compile, or none")
    offload: str | None = column("What is kept in the memory of the host instead of the device, or none")
    channels_last: bool | None = column("Whether image tensors are in channels-last memory format")
    loader_workers: int | None = column("Number of processes per rank that prepare batches")
    pin_memory: bool | None = column("Whether batches are put into page-locked memory")
    non_blocking: bool | None = column("Whether batches are copied to the device while it computes")
    cast_on_device: bool | None = column("Whether batches are copied in their stored types and converted on the device")

    model: str = column("Name of the model", required=True)
    model_file: str | None = column("File and name of the model's spec, of one in a file of the user's own")
    model_sha256: str | None = column("SHA-256 of the content of that file, without what it imports")
    size: str | None = column("Name of the size of the model, a preset or one of the user's own")
    parameters: int | None = column("Number of parameters of the whole model; a shared one counts once")
    unit: Literal["tokens", "images", "points"] | None = column("What throughput counts")
    sequence_length: int | None = column("Tokens per sample")
    tokenizer: str | None = column(
        "Tokenizer that texts are read with: gpt2, bytes, or tokenizer.json and the beginning of its SHA-256"
    )
    vocabulary: int | None = column("Number of tokens that a model of texts knows, without padding")
    image_size_px: int | None = column("Height and width of an image")
    n_classes: int | None = column("Number of classes of a model of labelled images")
    norm: str | None = column("Normalisation layers, of a model that has a choice")
    micro_batch_size: int | None = column("Samples in one forward pass of one rank")
    accumulation: int | None = column("Backward passes per optimizer step")
    global_batch_size: int | None = column("Samples per optimizer step, over all processes")
    optimizer: str | None = column("Name of the optimizer")
    seed: int | None = column("Seed of the initial weights, of shuffling and of noise")
    data: str | None = column("Name or path of the data set")
    data_sha256: str | None = column("SHA-256 of the content of the training data")

    startup_s: float | None = column("Time from the command to the first step")
    compile_s: float | None = column(
        "Time in torch.compile, that of the parity check included; 0 where nothing is compiled"
    )
    graph_breaks: int | None = column(
        "Number of places at which torch.compile ended a graph early, each time that it compiled them; 0 where nothing "
        "is compiled"
    )
    recompiles: int | None = column(
        "Number of times that torch.compile compiled again what it had compiled, for other shapes, types or values"
    )
    warmup_steps: int | None = column("Number of steps left out of the timing")
    warmup_rule: str | None = column("How the end of warm-up was chosen")
    measured_steps: int | None = column("Number of steps that were timed")
    steady: bool | None = column("Whether the timed steps show no trend")
    step_time_p50_s: float | None = column("Median step time; the time of a step is that of its slowest rank")
    step_time_p50_low_s: float | None = column("Lower end of the 95% confidence interval of the median step time")
    step_time_p50_high_s: float | None = column("Upper end of the 95% confidence interval of the median step time")
    step_time_p95_s: float | None = column("95th percentile of the step time")
    step_time_p99_s: float | None = column("99th percentile of the step time")
    step_time_mad_s: float | None = column("Median absolute deviation of the step time")
    samples_per_s: float | None = column("Samples of the global batch over the median step time")
    samples_per_s_per_device: float | None = column("Samples per second, per device")
    tokens_per_s: float | None = column("Tokens of the global batch over the median step time")
    tokens_per_s_per_device: float | None = column("Tokens per second, per device")
    data_wait_share: float | None = column(
        "Fraction of the step time spent waiting for the data loader; a GPU may have work meanwhile"
    )
    exposed_comm_share: float | None = column(
        "Fraction of the step time spent waiting for communication, mean over ranks; 0 with one rank"
    )
    straggler_ratio: float | None = column(
        "Own time of the slowest rank over the median of the other ranks (up to schema 8: of all ranks)"
    )
    slowest_rank: int | None = column("Rank that the others wait for")

    model_tflops_per_device: float | None = column(
        "Model FLOP/s per device: operations that the model needs by flop_formula, over the step time"
    )
    flop_formula: str | None = column("Name of the formula that counts the operations of the model")
    peak_tflops_per_device: float | None = column("Peak FLOP/s of a device in this precision")
    peak_source: str | None = column(
        "Where the peak is from, datasheet or measured; says so if the run exceeded it, and then mfu is unknown"
    )
    mfu: float | None = column("Model FLOP utilisation: model_tflops_per_device over the peak")
    hfu: float | None = column(
        "Hardware FLOP utilisation: as mfu, with the operations that activation checkpointing repeats"
    )
    energy_j: float | None = column("Energy of all devices over all timed steps, those cut as warm-up included")
    energy_source: str | None = column("Instrument that measured the energy")
    gpu_utilisation_mean_share: float | None = column("Fraction of the time in which a kernel ran on a GPU, mean")
    gpu_utilisation_max_share: float | None = column("Fraction of the time in which a kernel ran on a GPU, maximum")
    gpu_power_mean_w: float | None = column("Power of a GPU, mean")
    gpu_power_max_w: float | None = column("Power of a GPU, maximum")
    gpu_clock_mean_mhz: float | None = column("Clock of a GPU, mean")
    gpu_clock_max_mhz: float | None = column("Clock of a GPU, maximum")
    gpu_temperature_mean_c: float | None = column("Temperature of a GPU, mean")
    gpu_temperature_max_c: float | None = column("Temperature of a GPU, maximum")
    gpu_power_limit_w: float | None = column("Power limit that the driver enforces")
    gpu_throttle_reasons: str | None = column('Reasons for which clocks were held down, joined by "; "')
    cpu_utilisation_mean_share: float | None = column(
        "Utilisation of the allowed CPU cores by all ranks of a node, mean over nodes"
    )
    cpu_utilisation_max_share: float | None = column(
        "Upper bound of that utilisation: the sum of the maximum of each rank"
    )
    throttled: bool | None = column("Whether clocks were held down")

    gpu_allocated_peak_bytes: int | None = column("Peak memory that tensors took on a GPU")
    gpu_reserved_peak_bytes: int | None = column("Peak memory that torch reserved on a GPU")
    gpu_used_mean_bytes: int | None = column("Memory in use on the whole GPU as the driver counts it, mean")
    gpu_used_max_bytes: int | None = column("Memory in use on the whole GPU as the driver counts it, maximum")
    memory_parameters_bytes: int | None = column("Parameters, at the moment when all categories together are largest")
    memory_gradients_bytes: int | None = column("Gradients, at that moment")
    memory_optimizer_bytes: int | None = column("Optimizer states, at that moment")
    memory_activations_bytes: int | None = column("Activations, inputs and temporary tensors, at that moment")
    memory_buffers_bytes: int | None = column(
        "Communication buffers (buckets, gathered parameters, received tensors), at that moment"
    )
    memory_other_bytes: int | None = column("Buffers of modules, at that moment")
    memory_tensors_peak_bytes: int | None = column("Sum of all categories at that moment: the peak memory of tensors")
    process_peak_bytes: int | None = column("Peak resident memory of a process")
    memory_state_peak_bytes: int | None = column("Peak of parameters, gradients and optimizer states together")
    predicted_state_bytes: int | None = column("Predicted peak of parameters, gradients and optimizer states")
    expert_imbalance: float | None = column(
        "Rows of the busiest expert over those of a mean one, in the layer where they differ most: 1 where even"
    )
    dropped_share: float | None = column("Share of the choices of tokens for which an expert had no place left")

    comm_dp_calls: int | None = column("Number of collectives over the data axis")
    comm_dp_payload_bytes: int | None = column("Payload over the data axis")
    comm_dp_ring_bytes: float | None = column("What ring algorithms would send over the data axis")
    comm_dp_predicted_ring_bytes: float | None = column("Prediction of comm_dp_ring_bytes")
    comm_dp_sent_bytes: float | None = column("What leaves the rank over the data axis")
    comm_dp_predicted_sent_bytes: float | None = column("Prediction of comm_dp_sent_bytes")
    comm_dp_shard_calls: int | None = column("Number of collectives within groups of data ranks")
    comm_dp_shard_payload_bytes: int | None = column("Payload within groups of data ranks")
    comm_dp_shard_ring_bytes: float | None = column("What ring algorithms would send within groups of data ranks")
    comm_dp_shard_predicted_ring_bytes: float | None = column("Prediction of comm_dp_shard_ring_bytes")
    comm_dp_shard_sent_bytes: float | None = column("What leaves the rank within groups of data ranks")
    comm_dp_shard_predicted_sent_bytes: float | None = column("Prediction of comm_dp_shard_sent_bytes")
    comm_dp_replicate_calls: int | None = column("Number of collectives between groups of data ranks")
    comm_dp_replicate_payload_bytes: int | None = column("Payload between groups of data ranks")
    comm_dp_replicate_ring_bytes: float | None = column("What ring algorithms would send between groups of data ranks")
    comm_dp_replicate_predicted_ring_bytes: float | None = column("Prediction of comm_dp_replicate_ring_bytes")
    comm_dp_replicate_sent_bytes: float | None = column("What leaves the rank between groups of data ranks")
    comm_dp_replicate_predicted_sent_bytes: float | None = column("Prediction of comm_dp_replicate_sent_bytes")
    comm_ep_calls: int | None = column("Number of collectives among the ranks that divide experts")
    comm_ep_payload_bytes: int | None = column("Payload among the ranks that divide experts")
    comm_ep_ring_bytes: float | None = column("What ring algorithms would send among the ranks that divide experts")
    comm_ep_predicted_ring_bytes: float | None = column("Prediction of comm_ep_ring_bytes")
    comm_ep_sent_bytes: float | None = column("What leaves the rank among the ranks that divide experts")
    comm_ep_predicted_sent_bytes: float | None = column("Prediction of comm_ep_sent_bytes")
    comm_edp_calls: int | None = column("Number of collectives among the ranks that share experts")
    comm_edp_payload_bytes: int | None = column("Payload among the ranks that share experts")
    comm_edp_ring_bytes: float | None = column("What ring algorithms would send among the ranks that share experts")
    comm_edp_predicted_ring_bytes: float | None = column("Prediction of comm_edp_ring_bytes")
    comm_edp_sent_bytes: float | None = column("What leaves the rank among the ranks that share experts")
    comm_edp_predicted_sent_bytes: float | None = column("Prediction of comm_edp_sent_bytes")
    comm_cp_calls: int | None = column("Number of collectives over the context axis")
    comm_cp_payload_bytes: int | None = column("Payload over the context axis")
    comm_cp_ring_bytes: float | None = column("What ring algorithms would send over the context axis")
    comm_cp_predicted_ring_bytes: float | None = column("Prediction of comm_cp_ring_bytes")
    comm_cp_sent_bytes: float | None = column("What leaves the rank over the context axis")
    comm_cp_predicted_sent_bytes: float | None = column("Prediction of comm_cp_sent_bytes")
    comm_dp_cp_calls: int | None = column("Number of collectives over data and context ranks together")
    comm_dp_cp_payload_bytes: int | None = column("Payload over data and context ranks together")
    comm_dp_cp_ring_bytes: float | None = column("What ring algorithms would send over data and context ranks together")
    comm_dp_cp_predicted_ring_bytes: float | None = column("Prediction of comm_dp_cp_ring_bytes")
    comm_dp_cp_sent_bytes: float | None = column("What leaves the rank over data and context ranks together")
    comm_dp_cp_predicted_sent_bytes: float | None = column("Prediction of comm_dp_cp_sent_bytes")
    comm_tp_calls: int | None = column("Number of collectives over the tensor axis")
    comm_tp_payload_bytes: int | None = column("Payload over the tensor axis")
    comm_tp_ring_bytes: float | None = column("What ring algorithms would send over the tensor axis")
    comm_tp_predicted_ring_bytes: float | None = column("Prediction of comm_tp_ring_bytes")
    comm_tp_sent_bytes: float | None = column("What leaves the rank over the tensor axis")
    comm_tp_predicted_sent_bytes: float | None = column("Prediction of comm_tp_sent_bytes")
    comm_pp_calls: int | None = column("Number of collectives over the pipeline axis")
    comm_pp_payload_bytes: int | None = column("Payload over the pipeline axis")
    comm_pp_ring_bytes: float | None = column("What ring algorithms would send over the pipeline axis")
    comm_pp_predicted_ring_bytes: float | None = column("Prediction of comm_pp_ring_bytes")
    comm_pp_sent_bytes: float | None = column("What leaves the rank over the pipeline axis")
    comm_pp_predicted_sent_bytes: float | None = column("Prediction of comm_pp_sent_bytes")
    comm_world_calls: int | None = column("Number of collectives over the group of all ranks")
    comm_world_payload_bytes: int | None = column("Payload over the group of all ranks")
    comm_world_ring_bytes: float | None = column("What ring algorithms would send over the group of all ranks")
    comm_world_predicted_ring_bytes: float | None = column("Prediction of comm_world_ring_bytes")
    comm_world_sent_bytes: float | None = column("What leaves the rank over the group of all ranks")
    comm_world_predicted_sent_bytes: float | None = column("Prediction of comm_world_sent_bytes")
    comm_all_reduce_calls: int | None = column("Number of all_reduce calls, over all axes")
    comm_all_reduce_payload_bytes: int | None = column("Payload of all_reduce, over all axes")
    comm_all_gather_calls: int | None = column("Number of all_gather calls, over all axes")
    comm_all_gather_payload_bytes: int | None = column("Payload of all_gather, over all axes")
    comm_reduce_scatter_calls: int | None = column("Number of reduce_scatter calls, over all axes")
    comm_reduce_scatter_payload_bytes: int | None = column("Payload of reduce_scatter, over all axes")
    comm_all_to_all_calls: int | None = column("Number of all_to_all calls, over all axes")
    comm_all_to_all_payload_bytes: int | None = column("Payload of all_to_all, over all axes")
    comm_broadcast_calls: int | None = column("Number of broadcast calls, over all axes")
    comm_broadcast_payload_bytes: int | None = column("Payload of broadcast, over all axes")
    comm_send_calls: int | None = column("Number of send calls, over all axes")
    comm_send_payload_bytes: int | None = column("Payload of send, over all axes")
    comm_detail_json: str | None = column(
        '{axis: {collective: {"calls", "payload_bytes"}}}: calls and payload by axis and collective'
    )

    bubble_share: float | None = column(
        "Pipeline bubble: fraction of the time in which pipeline ranks are idle, measured"
    )
    bubble_theory_share: float | None = column("Bubble of the schedule if all passes take equally long")

    loss_first: float | None = column("Loss of the first step, mean over the global batch")
    loss_last: float | None = column("Loss of the last step, mean over the global batch")
    loss_difference_max: float | None = column(
        "Largest relative difference of a loss from one process with the same work"
    )
    grad_norm_last: float | None = column("Global norm of the gradient in the last step, before clipping")
    grad_norm_difference_max: float | None = column("Largest relative difference of a gradient norm from one process")
    parameter_difference_max: float | None = column(
        "Largest difference of a parameter from one process, relative to how far it moved there (up to schema 9: in "
        "learning rates)"
    )
    parity: bool | None = column("Parity result: whether all three differences are within their tolerances")
    parity_scope: str | None = column("How much of the run was compared: whole, or so many of its blocks and samples")
    parity_result: str | None = column(
        "Parity result in words: passed, or what differs, by how much, what is allowed, and what differs first"
    )
    parity_precision: str | None = column("Precision of the arithmetic during the parity check")

    git_commit: str | None = column("Git commit of the checkout")
    git_dirty: bool | None = column("Whether files differed from that commit")
    paralab_version: str | None = column("Version of paralab")
    python_version: str | None = column("Version of Python")
    torch_version: str | None = column("Version of torch")
    deepspeed_version: str | None = column("Version of DeepSpeed")
    accelerate_version: str | None = column("Version of Accelerate")
    transformers_version: str | None = column("Version of transformers")
    cuda_version: str | None = column("Version of CUDA that torch was built with")
    nccl_version: str | None = column("Version of NCCL")
    driver_version: str | None = column("Version of the GPU driver")
    gpu_name: str | None = column("Name of the GPU")
    gpu_count: int | None = column("Number of GPUs of the machine")
    cpu_model: str | None = column("Name of the processor")
    cores_allowed: float | None = column("CPU cores that the control group and the affinity mask allow")
    link_mbit_per_s: float | None = column("Bandwidth of the link of each node, where paralab cluster limited it")
    threads: int | None = column("CPU threads per rank")
    host_hash: str | None = column("Hash that tells machines apart without naming them")


# the column that each group begins with: what the group is about
GROUPS = {
    "schema": "identity",
    "strategy_requested": "requested and realised",
    "model": "model and data",
    "startup_s": "timing",
    "model_tflops_per_device": "efficiency",
    "gpu_allocated_peak_bytes": "memory",
    "comm_dp_calls": "communication per optimizer step, of the rank that sends most",
    "bubble_share": "pipeline",
    "loss_first": "correctness",
    "git_commit": "environment",
}


def with_axes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row in which those of axes without columns of their own are gathered in `axes_json`.

    Raises: KeyError for a name that is neither a column nor of an axis.
    """
    columns = {found.name for found in fields(RunRecord)}
    others = {name: value for name, value in values.items() if name not in columns}
    if unknown := others.keys() - _columns_of_axes():
        raise KeyError(f"a row has no {', '.join(sorted(unknown))}")
    kept = {name: value for name, value in values.items() if name in columns}
    return kept | {"axes_json": json.dumps(others) if others else None}


def _columns_of_axes() -> set[str]:
    """Return every column that an axis says something in: its degree and options, and what is sent along it."""
    names = {name for axis in words.AXES for name in axis.columns(Layout())}
    dims = [axis.name for axis in words.AXES]
    return names | {f"comm_{dim}_{count}" for dim in dims for count in _COUNTS}


_REQUIRED = ("schema", *(found.name for found in fields(RunRecord) if found.default is MISSING))


def parity_words(records: Sequence[RunRecord]) -> str:
    """Say what is known of the parity of runs of one kind, and on how much of them where that is not all.

    One that failed speaks for all; else the one that was proved on most. What was proved on all says `passed`.
    """
    checked = [record for record in records if record.parity is not None]
    if not checked:
        return next((record.parity_result for record in records if record.parity_result), "not checked")
    passed = all(record.parity for record in checked)
    scopes = [record.parity_scope or WHOLE for record in checked if record.parity is passed]
    scope = WHOLE if WHOLE in scopes else scopes[0]
    return ("passed" if passed else "FAILED") + ("" if scope == WHOLE else f" on {scope}")


def sent_bytes(record: RunRecord) -> float | None:
    """Return what leaves the rank that sends most in one step, over all axes; None where it was not recorded."""
    if record.world_size == 1:
        return 0.0
    others = json.loads(record.axes_json) if record.axes_json else {}
    sizes = [getattr(record, f"comm_{axis}_sent_bytes") for axis in COMM_AXES]
    sizes += [size for name, size in others.items() if re.fullmatch(r"comm_\w+(?<!predicted)_sent_bytes", name)]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step of one rank."""

    step: int
    loss: float | None = None  # mean over the global batch
    grad_norm: float | None = None  # before clipping
    learning_rate: float | None = None
    step_time_s: float | None = None
    data_wait_s: float | None = None
    samples: int | None = None  # in the global batch
    measured: bool | None = None  # False while warming up


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Memory of one rank at its peak."""

    rank: int
    parameters_bytes: int | None = None
    gradients_bytes: int | None = None
    optimizer_bytes: int | None = None
    activations_bytes: int | None = None
    buffers_bytes: int | None = None
    other_bytes: int | None = None
    process_peak_bytes: int | None = None


LogRecord = StepRecord | SpanRecord | MemoryRecord
_LOG_RECORDS = {"step": StepRecord, "span": SpanRecord, "memory": MemoryRecord}
_LOG_NAMES = {kind: name for name, kind in _LOG_RECORDS.items()}


_ELSEWHERE = "write to another file with --out NEW.csv"


def header() -> list[str]:
    """Return the columns of a CSV file, in order."""
    return [field.name for field in fields(RunRecord)]


def columns_of(number: int) -> set[str]:
    """Return the columns of a schema from `COUNTED_FROM` on, by their names in that schema."""
    columns = set(header())
    for later in sorted((n for n in CHANGES if n > number), reverse=True):
        change = CHANGES[later]
        old_names = {new: old for old, new in change.renamed.items()}
        columns = {old_names.get(name, name) for name in columns - set(change.added)} | set(change.removed)
    return columns


def check_appendable(path: str | Path, *, advice: str = _ELSEWHERE) -> None:
    """Raise UsageError when rows could not be added to a file, before there is anything to lose.

    advice: what to do about a file that is of another form.
    """
    path = Path(path)
    check_writable(path, make_folders=True)
    if path.exists() and (content := path.read_bytes()):
        _check_header(content, path, advice=advice)
        read(path)


def append(path: str | Path, record: RunRecord) -> None:
    """Add one row to a CSV file, creating it with its header; safe with other writers at the same time.

    What a writer that died left unfinished at the end of the file is cut off first. Returns when the row is on disk.

    Raises: UsageError when the file has another header, or was saved by another program; WriteError when the row cannot
    be written, as when the disk is full: it is kept among the temporary files, if there is room.
    """
    path = Path(path)
    row = _line(_encode(value, name, RunRecord) for name, value in vars(record).items())
    try:
        _append(path, row)
    except OSError as error:
        kept = _kept(_line(header()) + row, f"paralab-{record.run_id}.csv")
        where = f", and the row is kept in {kept}" if kept else ""
        raise WriteError(f"{path} cannot be written ({error.strerror}): make room there{where}") from error


def _append(path: Path, row: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        content = file.read()
        _check_header(content, path)
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        file.seek(len(whole))
        try:
            _write_all(file, row if whole else _line(header()) + row)
            os.fsync(file.fileno())
        except OSError:
            file.truncate(len(whole))  # no part of a row stays
            raise


def _kept(content: bytes, name: str) -> Path | None:
    """Write a file among the temporary ones; None where there is no room for it either.

    One that is there stays: the row of the failure, which follows, does not take the place of what was measured.
    """
    path = Path(tempfile.gettempdir()) / name
    try:
        with open(path, "xb") as file:
            file.write(content)
    except FileExistsError:
        return path
    except OSError:
        path.unlink(missing_ok=True)
        return None
    return path


def read(path: str | Path) -> list[RunRecord]:
    """Return the rows of a CSV file: see `read_lines`."""
    return [record for _, record in read_lines(path)]


def read_lines(path: str | Path) -> list[tuple[int, RunRecord]]:
    """Return the rows of a CSV file, each with its line, counted from 1.

    Files of an older schema are read, and files as spreadsheets save them (`paralab.records.sheet`).

    Warns of a last line that was not finished, of rows without a filled cell and of columns that have no place here;
    these are passed over.

    Raises: UsageError when it is no file of results, or one of a newer schema; DataError when it is missing, a cell
    has the wrong form, or a row does not say the schema of the columns.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            content = file.read()
    except OSError as error:
        problem = error.strerror
        raise DataError(f"{path} cannot be read ({problem}): give a CSV file that `paralab bench` wrote") from None
    table = sheet.parse(content, path)
    if not table.finished:
        warnings.warn(f"{path}: the last line is not finished and was skipped", stacklevel=2)
    if not table.columns and _line(header()).startswith(content):
        return []
    reader = _Reader(path, table.columns)
    rows = [(line.number, reader.row(line)) for line in table.lines if not line.blank]
    for said in (reader.passed_over(), _blank(table.lines)):
        if said:
            warnings.warn(f"{path}: {said}", stacklevel=2)
    return rows


def log_path(csv_path: str | Path, run_id: str, rank: int) -> Path:
    """Return where one rank of a run keeps its log: a folder beside the CSV file that is named like it."""
    return Path(csv_path).with_suffix("") / f"{safe_name(run_id)}.rank{rank}.jsonl"


def log_paths(csv_path: str | Path, run_id: str) -> list[Path]:
    """Return the logs of a run that exist, in order of rank."""
    name = safe_name(run_id)
    found = Path(csv_path).with_suffix("").glob("*.jsonl")
    ranks = {path: re.fullmatch(rf"{re.escape(name)}\.rank(\d+)\.jsonl", path.name) for path in found}
    return [path for _, path in sorted((int(match[1]), path) for path, match in ranks.items() if match)]


def safe_name(text: str) -> str:
    """Return a file name for any text: itself where that is harmless, otherwise cleaned and told apart by a hash."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", text):
        return text
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:60]
    return f"{cleaned or 'run'}-{sha256(text.encode(errors='surrogatepass')).hexdigest()[:10]}"


def one_line(text: str) -> str:
    """Return text with its control characters and backslashes escaped: it can move no cursor and start no line."""
    return _SPECIAL.sub(lambda found: "\\\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", text)


def harmless(text: str) -> str:
    """Return text as a CSV cell that no spreadsheet runs as a formula (see the top of this file)."""
    text = one_line(text)
    return f"'{text}" if not text or text.startswith(_FORMULA) else text


class LogWriter(Protocol):
    """Where a rank puts its steps, pipeline spans and memory."""

    def write(self, record: LogRecord) -> None: ...

    def close(self) -> None: ...


class StepLog:
    """Append records to a file, one JSON object a line. A line reaches the file when it is written.

    What an earlier process that died left unfinished at the end of the file is cut off.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
        self._path, self._file = path, open(path, "ab", buffering=0)

    def write(self, record: LogRecord) -> None:
        """Add a line. Raises: WriteError when it cannot be written."""
        cells = {name: _json_value(value) for name, value in asdict(record).items() if value is not None}
        line = json.dumps({"record": _LOG_NAMES[type(record)], **cells}, allow_nan=False) + "\n"
        try:
            _write_all(self._file, line.encode())
        except OSError as error:
            raise WriteError(f"{self._path} cannot be written ({error.strerror}): make room there") from error

    def close(self) -> None:
        self._file.close()


def set_aside(path: str | Path, *, first_step: int, into: Path) -> int:
    """Move the lines of a JSON Lines file whose step is `first_step` or later to a file of its name in another folder.

    They are of a start that came further than the checkpoint from which the run goes on, or of one that left none. So
    are lines without a step when everything is taken again, and those that cannot be read. Returns: how many.
    """
    path = Path(path)
    if not path.exists():
        return 0
    kept: list[bytes] = []
    moved: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        (kept if _is_before(line, first_step) else moved).append(line)
    if not moved:
        return 0
    into.mkdir(parents=True, exist_ok=True)
    with open(into / path.name, "ab") as file:
        file.writelines(line.rstrip(b"\n") + b"\n" for line in moved)
        file.flush()
        os.fsync(file.fileno())
    rewritten = path.with_name(f"{path.name}.tmp")
    rewritten.write_bytes(b"".join(kept))
    os.replace(rewritten, path)
    return len(moved)


def _is_before(line: bytes, first_step: int) -> bool:
    """Return whether a whole line is of a step before this one; one that belongs to no step is, unless all begins."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or not line.endswith(b"\n"):
        return False
    step = values.get("step", first_step - 1 if first_step > 0 else first_step)
    return type(step) is int and step < first_step


def read_log(path: str | Path) -> list[LogRecord]:
    """Return the records of one rank's log. A last line that was not finished is skipped with a warning.

    Raises: DataError when the file is missing or a line has the wrong form.
    """
    try:
        *lines, rest = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a log that a run wrote") from None
    if rest:
        warnings.warn(f"{path}: the last line is not finished and was skipped", stacklevel=2)
    return [_log_record(line, f"{path} line {number}") for number, line in enumerate(lines, start=1) if line]


def _log_record(line: str, place: str) -> LogRecord:
    try:
        cells = json.loads(line)
        kind = _LOG_RECORDS[cells.pop("record")]
        known = _types(kind)
        return kind(**{name: _checked(value, known[name]) for name, value in cells.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{place} is not a record of this version ({error!r}): remove the line") from None


def _checked(value: object, expected: type) -> object:
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        return float(value)
    _, choices = _kind(expected)
    if (value not in choices) if choices else (type(value) is not expected):
        raise ValueError(f"{value!r} where {expected} is needed")
    return value


def _json_value(value: object) -> object:
    """Return a value that strict JSON can hold: a number that is not finite becomes its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a record, without the `| None`."""
    hints = get_type_hints(kind)
    return {field.name: _without_none(hints[field.name]) for field in fields(kind)}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _kind(hint: Any) -> tuple[type, Sequence[str]]:
    """Return the type behind an annotation and, where it is a Literal, the values that are allowed."""
    return (str, get_args(hint)) if get_origin(hint) is Literal else (hint, ())


_SPECIAL = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(\\|u[0-9a-f]{4})")
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+([eE][-+]?\d+)?")
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "'")  # the wide forms count in some locales


def _encode(value: Any, name: str, kind: type) -> str:
    if value is None:
        return ""
    expected, choices = _kind(_types(kind)[name])
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r}: one of {', '.join(choices)} is needed")
    if expected is str:
        return harmless(value)
    if expected is bool:
        return "true" if value else "false"
    return repr(operator.index(value)) if expected is int else repr(float(value))


def _decode(cell: str, name: str, kind: type) -> Any:
    if cell == "":
        return None
    expected, choices = _kind(_types(kind)[name])
    if expected is str:
        escaped = cell.removeprefix("'")
        text = _ESCAPE.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), escaped)
        if choices and text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is needed")
        return text
    if expected is bool:
        return {"true": True, "false": False}[cell.lower()]  # spreadsheets write TRUE
    if expected is int and re.fullmatch(r"-?\d+\.0", cell):  # as data frames write whole numbers beside empty cells
        cell = cell.removesuffix(".0")
    return expected(cell)


def _line(cells: Iterable[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()


class _Reader:
    """Turns the lines of one file into records. Raises: UsageError when its columns are not those of results."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path, self._columns, self._known = path, columns, set(columns)
        if missing := [name for name in _REQUIRED if name not in self._known]:
            lacks = f"it lacks {_few(missing)}"
            raise UsageError(f"{path} has other columns than a result file ({lacks}): give one that `paralab` wrote")
        if twice := [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]:
            raise DataError(f"{path} has the column {twice[0]} twice: remove one of them")
        self._names = [_present_name(name) for name in columns]  # None where this version has no place for it

    def row(self, line: Line) -> RunRecord:
        place = f"{self._path} line {line.number}"
        if line.cells == self._columns:
            raise DataError(f"{place} repeats the names of the columns: remove the line")
        if len(line.cells) != len(self._columns):
            count = f"{len(line.cells)} cells, {len(self._columns)} are needed"
            raise DataError(f"{place} has {count}: correct the line or remove it")
        values = {}
        for name, cell in zip(self._names, line.cells, strict=True):
            if name is not None:
                values[name] = self._value(cell, name, place)
        self._check_schema(values["schema"], place)
        return RunRecord(**values)

    def _value(self, cell: str, name: str, place: str) -> Any:
        try:
            if cell == "" and name in _REQUIRED:
                raise ValueError("it cannot be empty")
            return _decode(cell, name, RunRecord)
        except (ValueError, KeyError) as error:
            why = "a decimal comma: save the file with decimal points" if _DECIMAL_COMMA.fullmatch(cell) else error
            raise DataError(f"{place}: {name} is {cell[:60]!r} ({why}): correct the cell") from None

    def _check_schema(self, number: int, place: str) -> None:
        """Raise where a row says another schema than the columns have."""
        if number > SCHEMA:
            written = f"written by a newer paralab: schema {number}, this one reads up to {SCHEMA}"
            raise UsageError(f"{place} was {written}: upgrade")
        if number == UNCOUNTED:
            late = self._known & (_ever_columns() - columns_of(COUNTED_FROM))
            wrong = f"has the later {_few(sorted(late))}" if late else ""
        elif number < COUNTED_FROM:
            wrong = "no version of paralab wrote that"
        else:
            missing, late = columns_of(number) - self._known, self._known & (_ever_columns() - columns_of(number))
            wrong = "; ".join(
                f"{verb} {_few(sorted(names))}" for verb, names in (("lacks", missing), ("has", late)) if names
            )
        if wrong:
            raise DataError(
                f"{place} says schema {number}, which does not fit the columns of the file ({wrong}): "
                "remove the line, or run its case again"
            )

    def passed_over(self) -> str:
        """Name the columns that were not read."""
        pairs = zip(self._columns, self._names, strict=True)
        extra = [column or "(without a name)" for column, name in pairs if name is None]
        return f"columns that this version does not know were skipped: {', '.join(extra)}" if extra else ""


def _present_name(column: str) -> str | None:
    while column in RENAMED:
        column = RENAMED[column]
    return column if column in _types(RunRecord) else None


def _ever_columns() -> set[str]:
    return set().union(*(columns_of(number) for number in range(COUNTED_FROM, SCHEMA + 1)))


def _blank(lines: Sequence[Line]) -> str:
    """Say which lines hold no value."""
    numbers = [str(line.number) for line in lines if line.blank]
    if not numbers:
        return ""
    return f"{'lines' if len(numbers) > 1 else 'line'} {_few(numbers)} without a filled cell: skipped"


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def _check_header(content: bytes, path: Path, *, advice: str = _ELSEWHERE) -> None:
    """Raise UsageError when rows cannot be added to a file with this content, because it is not as we write it."""
    head = _line(header())
    if content.startswith(head) or head.startswith(content):
        return
    if marks := sheet.marks_of_another_program(content):
        shown = ", ".join(marks)
        raise UsageError(f"{path} was saved by another program ({shown}), so no rows are added to it: {advice}")
    found = content.split(b"\n", 1)[0].decode(errors="replace").split(",")
    missing, unknown = [c for c in header() if c not in found], [c for c in found if c not in header()]
    difference = "; ".join(
        f"{what} {_few(names)}" for what, names in (("it lacks", missing), ("it has the unknown", unknown)) if names
    )
    raise UsageError(f"{path} has other columns than schema {SCHEMA} ({difference or 'another order'}): {advice}")


def _write_all(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data) :]
