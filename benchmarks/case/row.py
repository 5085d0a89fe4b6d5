"""The row of a case, of what all ranks measured: slowest time, largest memory, mean utilisation."""

import statistics
from typing import Any

from paralab.axes import eight_bits
from paralab.axes.held import state_bytes
from paralab.axes.pipeline import splits_backward
from paralab.axes.recompute import recomputation_ratio
from paralab.benchmarks.case.communication import bubble_columns, bubble_theory, sent_columns
from paralab.benchmarks.case.logged import parts_json
from paralab.benchmarks.case.measured import RankResult
from paralab.measure.routing import dropped_share, imbalance, together
from paralab.measure.split import Split
from paralab.measure.steady import StepTimes, summarise
from paralab.measure.straggler import exposed_share, furthest_behind, straggler
from paralab.parity.result import ParityResult
from paralab.parity.tolerances import as_judged
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.describe import describe, nodes_of
from paralab.records.of_axes import with_axes
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.telemetry import largest_known, telemetry_columns

EXCEEDED = "exceeded by the run"  # a peak that is not one: no share of it is recorded


def record_of(
    work: Work,
    requested: Requested,
    rank: Rank,
    mesh: Mesh,
    results: list[RankResult],
    parity_result: ParityResult | None,
    startup_s: float | None,
    *,
    scope: str | None = None,
) -> RunRecord:
    """Put what all ranks measured into one row: slowest time, largest memory, mean utilisation."""
    slowest = [max(times) for times in zip(*(r.step_times_s for r in results), strict=True)]
    times = summarise(slowest)
    fields: dict[str, Any] = {
        **describe(work, requested, rank, mesh.device),
        "status": "ok",
        "startup_s": startup_s,
        "wall_s": requested.started.elapsed_s,
        "loss_first": results[0].losses[0],
        "loss_last": results[0].losses[-1],
        "grad_norm_last": results[0].grad_norms[-1],
        **_timing_columns(work, results, times),
        **_efficiency_columns(work, results, times, slowest),
        **_energy_columns(work, results, nodes=nodes_of(work, rank)),
        **_memory_columns(work, results, mesh.device.type),
        **_routing_columns(results),
        **sent_columns(work, results, mesh.device.type),
        **bubble_columns(work, results),
    }
    fields["parity_scope"], fields["parity_result"] = scope, str(parity_result or scope) if scope else None
    if parity_result is not None:
        fields["loss_difference_max"] = parity_result.loss_difference
        fields["grad_norm_difference_max"] = parity_result.grad_norm_difference
        fields["parameter_difference_max"] = parity_result.parameter_difference
        fields["parity"] = parity_result.passed
        fields["parity_precision"] = as_judged(work).run.precision
    return RunRecord(**with_axes(fields))


def _timing_columns(work: Work, results: list[RankResult], times: StepTimes) -> dict[str, Any]:
    warmup = work.run.warmup
    waits = [sum(r.data_waits_s) / sum(r.step_times_s) for r in results]
    return {
        "compile_s": max(r.compiled.seconds for r in results),
        "graph_breaks": max(r.compiled.graph_breaks for r in results),
        "recompiles": max(r.compiled.recompiles for r in results),
        "warmup_steps": warmup + times.warmup_steps,
        "warmup_rule": f"first {warmup}, then {times.warmup_rule}" if warmup else times.warmup_rule,
        "measured_steps": times.measured_steps,
        "steady": times.steady,
        "step_time_p50_s": times.step_time_p50_s,
        "step_time_p50_low_s": times.step_time_p50_low_s,
        "step_time_p50_high_s": times.step_time_p50_high_s,
        "step_time_p95_s": times.step_time_p95_s,
        "step_time_p99_s": times.step_time_p99_s,
        "step_time_mad_s": times.step_time_mad_s,
        "data_wait_share": max(waits),
        **_slowest_columns(work, results),
    }


def _slowest_columns(work: Work, results: list[RankResult]) -> dict[str, Any]:
    """Columns of the rank that the others wait for; one alone waits for none."""
    splits = [Split.sum(r.splits) for r in results]
    slowest = straggler(splits) if len(splits) > 1 else None
    rank = slowest.rank if slowest else 0
    told = parts_json(splits[rank], bubble_theory(work), steps=len(results[rank].splits))
    columns: dict[str, Any] = {
        "exposed_comm_share": exposed_share(splits) if slowest else 0.0,
        "straggler_ratio": slowest.ratio if slowest else 1.0,
        "step_parts_json": told,
    }
    if slowest is None:
        return columns
    lag = furthest_behind([r.splits for r in results], rank)
    step = results[rank].splits_from + lag.step
    found = {"slowest_step": step, "slowest_behind_s": lag.behind_s, "slowest_cause": lag.cause}
    return columns | {"slowest_rank": rank, **found}


def _efficiency_columns(
    work: Work, results: list[RankResult], times: StepTimes, slowest: list[float]
) -> dict[str, Any]:
    kept = slowest[times.warmup_steps :]
    devices = work.layout.world_size
    samples_per_s = work.division.global_batch_size * len(kept) / sum(kept)
    tokens = samples_per_s * work.spec.units_in_sample(work.model_config)
    flops = work.spec.flops_of(work.model_config)
    per_device = flops.per_sample * samples_per_s / devices
    peak, peak_source = statistics.mean(r.peak_flops for r in results), results[0].peak_source
    checkpointing = work.run.checkpointing
    # torch computes a block again for each of its layers where backward is split: nobody has counted that
    known = checkpointing in ("none", "offload") or not splits_backward(work)
    recomputation = recomputation_ratio(work.spec, work.model_config, checkpointing) if known else None
    exceeded = per_device * (recomputation or 1.0) > peak
    is_text = _tokens_per_step(work) is not None
    return {
        "samples_per_s": samples_per_s,
        "samples_per_s_per_device": samples_per_s / devices,
        "tokens_per_s": tokens if is_text else None,
        "tokens_per_s_per_device": tokens / devices if is_text else None,
        "tokens_per_step": _tokens_per_step(work),
        "model_flop_per_step": flops.per_sample * work.division.global_batch_size,
        "model_tflops_per_device": per_device / 1e12,
        "flop_formula": flops.formula,
        "peak_tflops_per_device": peak / 1e12,
        "peak_source": f"{peak_source}; {EXCEEDED}" if exceeded else peak_source,
        "mfu": None if exceeded else per_device / peak,
        "hfu": per_device * recomputation / peak if recomputation and not exceeded else None,
    }


def _tokens_per_step(work: Work) -> int | None:
    is_text = work.spec.unit_of(work.model_config) == "tokens"
    return work.division.global_batch_size * work.spec.units_in_sample(work.model_config) if is_text else None


def _energy_columns(work: Work, results: list[RankResult], *, nodes: int) -> dict[str, Any]:
    """Return the columns of telemetry, with energy per token: the sampler ran over all timed steps."""
    a_step = _tokens_per_step(work)
    tokens = a_step * len(results[0].step_times_s) if a_step is not None else None
    return telemetry_columns([r.telemetry for r in results if r.telemetry is not None], nodes=nodes, tokens=tokens)


def _memory_columns(work: Work, results: list[RankResult], device_type: str) -> dict[str, Any]:
    predicted = state_bytes(work)  # on a CPU the host is the device
    largest = max(results, key=lambda r: r.tensors_peak_bytes)
    allocated, reserved = zip(*(r.gpu_peak_bytes for r in results), strict=True)
    return {
        **{f"memory_{category}_bytes": size for category, size in largest.memory.items()},
        "memory_tensors_peak_bytes": largest.tensors_peak_bytes,
        "process_peak_bytes": largest_known(r.process_peak_bytes for r in results),
        "gpu_allocated_peak_bytes": largest_known(allocated),
        "gpu_reserved_peak_bytes": largest_known(reserved),
        "memory_state_peak_bytes": max(r.state_peak_bytes for r in results),
        "predicted_state_bytes": predicted.everywhere if device_type == "cpu" else predicted.total,
        **eight_bits.columns(work.run, [result.moments for result in results]),
    }


def _routing_columns(results: list[RankResult]) -> dict[str, Any]:
    loads = together([result.loads for result in results])
    return {"expert_imbalance": imbalance(loads), "dropped_share": dropped_share(loads)}
