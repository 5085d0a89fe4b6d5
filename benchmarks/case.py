"""Measure one case on every rank: build, prove parity, warm up, time steps, measure memory. Rank 0 returns the row.

The order keeps measuring out of what is measured: timed steps carry nothing but the clock, the sampler and, where
somebody watches on a terminal, a bar that is drawn ten times a second; bytes,
memory and waiting are looked at in further steps, which are not timed.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from paralab import engines
from paralab.axes import eight_bits
from paralab.axes.held import state_bytes
from paralab.axes.optimizer import learning_rate
from paralab.axes.pipeline import splits_backward
from paralab.axes.pipeline.stages import pass_order
from paralab.axes.precision import DTYPES
from paralab.axes.recompute import recomputation_ratio
from paralab.axes.sent import predicted_sent
from paralab.benchmarks.report import to_loss
from paralab.benchmarks.trace import trace_step
from paralab.console.phases import Phases, hidden
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine, StepResult
from paralab.errors import DivergedError
from paralab.measure import memory
from paralab.measure.compiling import Compiled, compiled
from paralab.measure.exposed import ExposedCommunication
from paralab.measure.ledger import CommLedger, CommRow
from paralab.measure.memory import MemoryCensus
from paralab.measure.nvml import cuda_uuid
from paralab.measure.roofline import device_peak
from paralab.measure.routing import Loads, RoutingCounts, dropped_share, imbalance, together
from paralab.measure.span import SpanRecord
from paralab.measure.split import Split
from paralab.measure.steady import StepTimes, summarise
from paralab.measure.straggler import exposed_share, furthest_behind, straggler
from paralab.measure.telemetry import Sampler, Telemetry
from paralab.measure.timeline import Timeline, bubble_share, bubble_theory_share
from paralab.parity.prove import prove
from paralab.parity.result import ParityResult
from paralab.parity.scope import Proof
from paralab.parity.tolerances import as_judged
from paralab.planning.batches import training_batches
from paralab.planning.resolve import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh, default_backend
from paralab.processes.rank import Rank
from paralab.records.describe import describe, nodes_of
from paralab.records.log import MemoryRecord, SplitRecord, StepLog, StepRecord
from paralab.records.of_axes import with_axes
from paralab.records.requested import Requested
from paralab.records.row import COLLECTIVES, RunRecord
from paralab.records.telemetry import largest_known, telemetry_columns

EXCEEDED = "exceeded by the run"  # a peak that is not one: no share of it is recorded
_SPLIT_STEPS = 3  # in which waiting is told from working: one alone would be at the mercy of a hiccup


@dataclass
class RankResult:
    """What one rank measured."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    warmup_times_s: list[float] = field(default_factory=list)  # each until its loss was read
    step_times_s: list[float] = field(default_factory=list)
    data_waits_s: list[float] = field(default_factory=list)
    telemetry: Telemetry | None = None
    comm: list[CommRow] = field(default_factory=list)
    spans: list[SpanRecord] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    tensors_peak_bytes: int = 0
    state_peak_bytes: int = 0
    moments: tuple[int, int] = (0, 0)  # numbers in 8 bits, and all
    loads: Loads = field(default_factory=dict)
    process_peak_bytes: int | None = None
    gpu_peak_bytes: tuple[int | None, int | None] = (None, None)
    splits: list[Split] = field(default_factory=list)  # of untimed steps, from `splits_from` on
    splits_from: int = 0
    compiled: Compiled = Compiled()
    peak_flops: float = 0.0
    peak_source: str = ""


def run_case(
    work: Work,
    *,
    requested: Requested,
    rank: Rank,
    mesh: Mesh,
    proof: Proof | None = None,
    log: StepLog | None = None,
    progress: Progress | None = None,
    phases: Phases | None = None,
    trace: str | None = None,
    until_loss: float | None = None,
) -> RunRecord:
    """Measure a case on every rank of its mesh; each returns the same row.

    proof: what to judge parity by, or None to skip it. trace: a file for a trace of one more step. until_loss: end the
    timed steps where this loss is reached.
    Raises: DivergedError when a loss or a gradient norm is not finite.
    """
    run, progress, phases = work.run, progress or Progress(), phases or hidden()
    compiled_before = compiled(run.compile)
    parity_result = None
    if proof is not None and proof.work is not None and proof.want is not None:
        phases.begin(f"parity: the same steps under {proof.work.layout}")
        parity_result = prove(proof.work, mesh, proof.want)
    phases.begin("building the model")
    memory.reset_process_peak()
    memory.reset_device_peak(mesh.device)
    engine = engines.build(work.context(mesh), run.engine, ds_config=run.ds_config)
    batches = training_batches(work, mesh)
    result = RankResult()
    startup_s = requested.started.elapsed_s
    if run.warmup:
        phases.begin(f"warming up: {run.warmup} steps", total=run.warmup)
    for step in range(run.warmup):
        progress.step = step
        _take_step(engine, batches, result, step)
        phases.advance()
    phases.begin(f"measuring: {run.steps} steps", total=run.steps)
    reached = _reaches(until_loss, list(result.losses))
    timed_steps(engine, batches, work, mesh, result, progress, on_step=phases.advance, is_last=reached)
    phases.begin("measuring bytes, memory and waiting, in steps that are not timed")
    result.compiled = compiled(run.compile).since(compiled_before)
    if log is not None:
        _write_steps(log, work, result)
    result.process_peak_bytes = memory.process_peak_bytes()
    result.gpu_peak_bytes = memory.device_peak_bytes(mesh.device)
    _look_inside(engine, batches, mesh, result)
    if trace is not None:
        trace_step(engine, batches, mesh, trace, step=len(result.losses))
    if log is not None:
        for span in result.spans:
            log.write(span)
        for split in _splits_of(rank.rank, result, bubble_share=_bubble_theory(work)):
            log.write(split)
        log.write(_memory_of(rank.rank, result))
        log.close()
    scope = proof.scope if proof else None
    results = _gather(_with_peak(result, work, mesh), mesh)
    record = _record(work, requested, rank, mesh, results, parity_result, startup_s, scope=scope)
    if record.mfu is None:  # on every rank: the machine was busy when the peak was measured
        results = _gather(_with_peak(result, work, mesh, again=True), mesh)
        record = _record(work, requested, rank, mesh, results, parity_result, startup_s, scope=scope)
    return replace(record, **_to_loss_columns(work, results, until_loss))


def _to_loss_columns(work: Work, results: list[RankResult], target: float | None) -> dict[str, Any]:
    """Return what it took to reach a loss; the time of a step is that of its slowest rank."""
    each = zip(*([*result.warmup_times_s, *result.step_times_s] for result in results), strict=True)
    batch = work.division.global_batch_size
    return to_loss.columns(results[0].losses, [max(times) for times in each], target, global_batch_size=batch)


def _with_peak(result: RankResult, work: Work, mesh: Mesh, *, again: bool = False) -> RankResult:
    peak = device_peak(mesh.device, DTYPES[work.run.precision], again=again)
    return replace(result, peak_flops=peak.flops, peak_source=peak.source)


def _take_step(engine: Engine, batches: Iterator[Batch], result: RankResult, step: int) -> None:
    began_s = time.perf_counter()
    got = engine.step(next(batches))
    result.losses.append(got.loss.item())
    result.grad_norms.append(got.grad_norm.item())
    result.warmup_times_s.append(time.perf_counter() - began_s)
    _check_finite(result, step)


def _reaches(target: float | None, losses: list[float]) -> Callable[[StepResult], bool]:
    """Return what says after a step whether a loss is reached; losses: of the steps before, which it goes on with.

    It waits for the loss of each step, which is equal on all ranks: they end in the same step.
    """

    def is_last(got: StepResult) -> bool:
        if target is None:
            return False
        losses.append(got.loss.item())
        return to_loss.steps_to(losses, target) is not None

    return is_last


def _check_finite(result: RankResult, step: int) -> None:
    if not math.isfinite(result.losses[-1]) or not math.isfinite(result.grad_norms[-1]):
        raise DivergedError(
            f"loss {result.losses[-1]}, gradient norm {result.grad_norms[-1]} at step {step}: "
            "lower --learning-rate, or use --precision fp32"
        )


def timed_steps(
    engine: Engine,
    batches: Iterator[Batch],
    work: Work,
    mesh: Mesh,
    result: RankResult,
    progress: Progress,
    on_step: Callable[[], None] = lambda: None,
    is_last: Callable[[StepResult], bool] = lambda got: False,
) -> None:
    """Run the measured steps, up to one that is the last. Losses stay on the device until the window ends."""
    cuda = mesh.device.type == "cuda"
    sampler = Sampler(gpu_uuid=cuda_uuid(mesh.device.index) if cuda else None)
    got, marks = [], []
    if mesh.world is not None:
        dist.barrier(group=mesh.world)
    sampler.start_window()
    start = _now(cuda)
    for step in range(len(result.losses), len(result.losses) + work.run.steps):
        progress.step = step
        waited = time.perf_counter()
        batch = next(batches)
        result.data_waits_s.append(time.perf_counter() - waited)
        got.append(engine.step(batch))
        marks.append(_now(cuda))
        on_step()
        if is_last(got[-1]):
            break
    if cuda:
        torch.cuda.synchronize()
    result.telemetry = sampler.stop_window()
    result.step_times_s = [_seconds(a, b) for a, b in zip([start, *marks[:-1]], marks, strict=True)]
    for step_result in got:
        result.losses.append(step_result.loss.item())
        result.grad_norms.append(step_result.grad_norm.item())
        _check_finite(result, len(result.losses) - 1)


def _now(cuda: bool) -> Any:
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(a: Any, b: Any) -> float:
    return b - a if isinstance(a, float) else a.elapsed_time(b) / 1e3


def _look_inside(engine: Engine, batches: Iterator[Batch], mesh: Mesh, result: RankResult) -> None:
    """Note waiting, the passes of a pipeline, bytes sent, and memory by category, each in untimed steps of its own."""
    several = mesh.layout.world_size > 1  # ZeRO over one rank has a group as well, and sends nothing
    result.splits_from, result.splits = len(result.losses), _splits(engine, batches, mesh)
    if stages := engine.stages:
        with Timeline(stages, mesh) as timeline:
            engine.step(next(batches))
        result.spans = timeline.spans(step=len(result.losses), rank=dist.get_rank())
    if several:
        period = mesh.layout.local or 1  # steps after which data ranks have sent all that they do
        with CommLedger(mesh.groups(), steps=period) as ledger:
            for batch in islice(batches, period):
                engine.step(batch)
        result.comm = ledger.rows()
    routing = RoutingCounts(engine.parts)
    if routing.routers:  # every stage has some, or none has
        with routing:
            engine.step(next(batches))
        result.loads = routing.loads
    with MemoryCensus(engine.parts, engine.optimizers, held=engine.held) as census:
        engine.step(next(batches))
    report = census.report()
    result.memory, result.tensors_peak_bytes = dict(report.peak), report.peak_bytes
    result.state_peak_bytes = report.state_peak_bytes
    result.moments = eight_bits.counted(state for optimizer in engine.optimizers for state in optimizer.state.values())


def _splits(engine: Engine, batches: Iterator[Batch], mesh: Mesh) -> list[Split]:
    seen = ExposedCommunication(mesh.device, mesh.groups() if mesh.world is not None else None)
    if mesh.world is not None:
        dist.barrier(group=mesh.world)
    for _ in range(_SPLIT_STEPS):
        with seen:
            engine.step(seen.next(batches))
    return seen.splits


def _gather(result: RankResult, mesh: Mesh) -> list[RankResult]:
    if mesh.world is None:
        return [result]
    results: list[Any] = [None] * mesh.layout.world_size
    dist.all_gather_object(results, result, group=mesh.world)
    return results


def _write_steps(log: StepLog, work: Work, result: RankResult) -> None:
    for step, (loss, norm) in enumerate(zip(result.losses, result.grad_norms, strict=True)):
        timed = step - work.run.warmup
        log.write(
            StepRecord(
                step=step,
                loss=loss,
                grad_norm=norm,
                learning_rate=learning_rate(work.run, step),
                step_time_s=result.step_times_s[timed] if timed >= 0 else None,
                data_wait_s=result.data_waits_s[timed] if timed >= 0 else None,
                samples=work.division.global_batch_size,
                measured=timed >= 0,
            )
        )


def _splits_of(rank: int, result: RankResult, *, bubble_share: float | None) -> list[SplitRecord]:
    return [
        SplitRecord(
            step=step,
            rank=rank,
            compute_s=split.compute_s,
            data_s=split.data_s,
            exposed_s=split.exposed_s,
            host_s=split.host_s,
            parts_json=_parts_json(split, bubble_share),
        )
        for step, split in enumerate(result.splits, result.splits_from)
    ]


def _parts_json(split: Split, bubble_share: float | None, *, steps: int = 1) -> str:
    """Return the parts of a step, in seconds; of a sum of several, their mean."""
    parts_s = split.parts_s(bubble_share=bubble_share)
    return json.dumps({part: round(s / steps, 6) for part, s in parts_s.items()})


def _memory_of(rank: int, result: RankResult) -> MemoryRecord:
    categories = {f"{category}_bytes": size for category, size in result.memory.items()}
    return MemoryRecord(rank=rank, process_peak_bytes=result.process_peak_bytes, **categories)


def _record(
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
        **_comm_columns(work, results, mesh.device.type),
        **_bubble_columns(work, results),
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
    told = _parts_json(splits[rank], _bubble_theory(work), steps=len(results[rank].splits))
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


def _comm_columns(work: Work, results: list[RankResult], device_type: str) -> dict[str, Any]:
    backend = dist.get_backend() if dist.is_initialized() else default_backend(device_type)
    comm = dict(enumerate(result.comm for result in results))
    return comm_columns(work, comm, device_type=device_type, backend=backend)


def comm_columns(work: Work, comm: Mapping[int, list[CommRow]], *, device_type: str, backend: str) -> dict[str, Any]:
    """Return the columns of the rank that sends most; a rank alone sends nothing. comm: of ranks, by their number."""
    busiest = max(comm, key=lambda rank: sum(row.wire_bytes for row in comm[rank]))
    columns: dict[str, Any] = {"comm_detail_json": _calls_json(comm[busiest])}
    for row in comm[busiest]:
        for key in (f"comm_{row.axis}", f"comm_{row.op}" if row.op in COLLECTIVES else None):
            if key is None or (key == f"comm_{row.axis}" and row.axis == "other"):
                continue
            columns[f"{key}_calls"] = columns.get(f"{key}_calls", 0) + row.calls
            columns[f"{key}_payload_bytes"] = columns.get(f"{key}_payload_bytes", 0) + row.payload_bytes
            if key == f"comm_{row.axis}":
                columns[f"{key}_ring_bytes"] = columns.get(f"{key}_ring_bytes", 0.0) + float(row.ring_bytes)
                columns[f"{key}_sent_bytes"] = columns.get(f"{key}_sent_bytes", 0.0) + float(row.wire_bytes)
    if work.run.engine == "torch":
        pp_rank = busiest // (work.layout.world_size // work.layout.pp)
        sent = predicted_sent(work, pp_rank, device_type=device_type, backend=backend)
        columns |= {f"comm_{axis}_predicted_ring_bytes": float(size) for axis, size in sent.ring_bytes.items()}
        columns |= {f"comm_{axis}_predicted_sent_bytes": float(size) for axis, size in sent.wire_bytes.items()}
    return columns


def _calls_json(rows: list[CommRow]) -> str | None:
    calls: dict[str, dict[str, Any]] = {}
    for row in rows:
        calls.setdefault(row.axis, {})[row.op] = {"calls": row.calls, "payload_bytes": row.payload_bytes}
    return json.dumps(calls) if calls else None


def _bubble_columns(work: Work, results: list[RankResult]) -> dict[str, Any]:
    """Columns of a pipeline: the idle share of all ranks in one step, and what its schedule makes inevitable."""
    spans = [span for result in results for span in result.spans]
    theory = _bubble_theory(work)
    if theory is None:
        return {}
    return {"bubble_share": bubble_share(spans) if spans else None, "bubble_theory_share": theory}


def _bubble_theory(work: Work) -> float | None:
    layout = work.layout
    if layout.schedule is None:
        return None
    return bubble_theory_share(pass_order(layout.schedule, pp=layout.pp, micro_batches=work.division.chunks))
