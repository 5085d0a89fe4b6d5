"""The row of one run: its columns, in the order of a CSV file.

`RunRecord` is the only schema of results. The header of a CSV file is its fields in order, and the types of the
cells are its annotations. Units are in the names, and None is unknown: an empty cell. Over ranks, times and memory
are the maximum, utilisation is the mean, and throughput is that of the global batch over the slowest rank. A share is
a number from 0 to 1. What earlier schemas had is in `paralab.records.changes`.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from paralab.errors import Status
from paralab.measure.straggler import Cause
from paralab.records.changes import SCHEMA

Device = Literal["cpu", "cuda"]
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
    until_decided_percent: float | None = column(
        "Margin of equivalence for which repeats went on until each comparison was decided; empty where their number "
        "was fixed"
    )
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
    outer_fragments: int | None = column(
        "Number of fragments of the model that data ranks which trained apart bring together at different steps"
    )
    outer_overlap: int | None = column(
        "Number of steps in which the message about a fragment travels, while data ranks train on"
    )
    axes_json: str | None = column(
        "{column: value}: columns of axes that have none of their own in this file, such as axes that a user added"
    )
    precision_requested: str | None = column("Precision that was requested")
    precision: str | None = column("Precision of the arithmetic")
    checkpointing: str | None = column(
        "Activation checkpointing: none, full, N (every N-th block is recomputed), selective (attention alone is), or "
        "offload (kept by the host)"
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
    residual: str | None = column("Residual connections, of a model that has a choice: on or off")
    micro_batch_size: int | None = column("Samples in one forward pass of one rank")
    accumulation: int | None = column("Backward passes per optimizer step")
    global_batch_size: int | None = column("Samples per optimizer step, over all processes")
    optimizer: str | None = column("Name of the optimizer")
    seed: int | None = column("Seed of the initial weights, of shuffling and of noise")
    data: str | None = column("Name or path of the data set")
    data_sha256: str | None = column("SHA-256 of the content of the training data")
    epochs_requested: int | None = column("Number of epochs that was requested, of a training run; empty without")
    epochs: float | None = column(
        "How often a training run has gone over its data, from step 0 on: samples taken over samples there are"
    )

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
        "Own time of the slowest rank, in which it does not wait for others, over the median of the other ranks (up to "
        "schema 8: of all ranks; up to schema 21 without waiting for data)"
    )
    slowest_rank: int | None = column("Rank that the others wait for: the one with most own time")
    slowest_step: int | None = column(
        "Step in which that rank was furthest behind the median of the others, of those that are looked at untimed"
    )
    slowest_behind_s: float | None = column("How far it was behind in that step")
    slowest_cause: Cause | None = column(
        "What it took longer for than the others in that step; communication where it waited longer than it was behind"
    )
    step_parts_json: str | None = column(
        "{part: seconds}: what the slowest rank does in a step; adds up to one that is looked at untimed: compute, "
        "data (waiting for a batch), host (of a GPU without work), bubble (inevitable in the schedule), comm_AXIS "
        "(waiting for communication, and for others)"
    )

    tokens_per_step: int | None = column("Tokens of the global batch, of a model of texts")
    model_flop_per_step: float | None = column(
        "Operations that the model needs for the global batch by flop_formula, over all devices"
    )
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
    energy_per_token_j: float | None = column("Energy of all devices over the tokens of all timed steps")
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
    optimizer_8bit_share: float | None = column(
        "Share of the moments that --optimizer adamw8bit keeps in 8 bits, over all ranks; small tensors stay in fp32"
    )
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
    until_loss: float | None = column("Loss that the run was to reach, as the mean of its last 8 steps; empty without")
    steps_to_loss: int | None = column("Steps up to the one that reached until_loss; empty where none did")
    samples_to_loss: int | None = column("Samples of these steps")
    time_to_loss_s: float | None = column("Time of these steps, without what came before the first of them")
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
    "tokens_per_step": "efficiency",
    "gpu_allocated_peak_bytes": "memory",
    "comm_dp_calls": "communication per optimizer step, of the rank that sends most",
    "bubble_share": "pipeline",
    "loss_first": "correctness",
    "git_commit": "environment",
}
REQUIRED = ("schema", *(found.name for found in fields(RunRecord) if found.default is MISSING))


def header() -> list[str]:
    """Return the columns of a CSV file, in order."""
    return [field.name for field in fields(RunRecord)]
