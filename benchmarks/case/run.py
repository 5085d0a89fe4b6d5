"""Take one case on every rank of its mesh, in the order in which nothing disturbs what is measured."""

from dataclasses import replace
from typing import Any

import torch.distributed as dist

from paralab import engines
from paralab.axes.precision import DTYPES
from paralab.benchmarks.case.communication import bubble_theory
from paralab.benchmarks.case.inside import look_inside
from paralab.benchmarks.case.logged import write_inside, write_steps
from paralab.benchmarks.case.measured import RankResult
from paralab.benchmarks.case.row import record_of
from paralab.benchmarks.case.steps import reaches, timed_steps, warm_up
from paralab.benchmarks.report import to_loss
from paralab.benchmarks.trace import trace_step
from paralab.console.phases import Phases, hidden
from paralab.measure import memory
from paralab.measure.compiling import compiled
from paralab.measure.roofline import device_peak
from paralab.parity.prove import prove
from paralab.parity.result import ParityResult
from paralab.parity.scope import Proof
from paralab.planning.batches import training_batches
from paralab.planning.work import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.log import StepLog
from paralab.records.requested import Requested
from paralab.records.row import RunRecord


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
    parity_result = _proved(proof, mesh, phases)
    phases.begin("building the model")
    memory.reset_process_peak()
    memory.reset_device_peak(mesh.device)
    engine = engines.build(work.context(mesh), run.engine, ds_config=run.ds_config)
    batches = training_batches(work, mesh)
    result, startup_s = RankResult(), requested.started.elapsed_s
    warm_up(engine, batches, run.warmup, result, progress, phases)
    phases.begin(f"measuring: {run.steps} steps", total=run.steps)
    reached = reaches(until_loss, list(result.losses))
    timed_steps(engine, batches, work, mesh, result, progress, on_step=phases.advance, is_last=reached)
    phases.begin("measuring bytes, memory and waiting, in steps that are not timed")
    result.compiled = compiled(run.compile).since(compiled_before)
    if log is not None:
        write_steps(log, work, result)
    result.process_peak_bytes = memory.process_peak_bytes()
    result.gpu_peak_bytes = memory.device_peak_bytes(mesh.device)
    look_inside(engine, batches, mesh, result)
    if trace is not None:
        trace_step(engine, batches, mesh, trace, step=len(result.losses))
    if log is not None:
        write_inside(log, rank.rank, result, bubble_share=bubble_theory(work))
        log.close()

    def row(*, again: bool = False) -> RunRecord:
        results = _gather(_with_peak(result, work, mesh, again=again), mesh)
        scope = proof.scope if proof else None
        record = record_of(work, requested, rank, mesh, results, parity_result, startup_s, scope=scope)
        return replace(record, **_to_loss_columns(work, results, until_loss))

    record = row()
    return row(again=True) if record.mfu is None else record  # on every rank: it was busy when the peak was measured


def _proved(proof: Proof | None, mesh: Mesh, phases: Phases) -> ParityResult | None:
    """Return the parity result of what was chosen to prove; None where nothing was, or nothing fits."""
    if proof is None or proof.work is None or proof.want is None:
        return None
    phases.begin(f"parity: the same steps under {proof.work.layout}")
    return prove(proof.work, mesh, proof.want)


def _to_loss_columns(work: Work, results: list[RankResult], target: float | None) -> dict[str, Any]:
    """Return what it took to reach a loss; the time of a step is that of its slowest rank."""
    each = zip(*([*result.warmup_times_s, *result.step_times_s] for result in results), strict=True)
    batch = work.division.global_batch_size
    return to_loss.columns(results[0].losses, [max(times) for times in each], target, global_batch_size=batch)


def _with_peak(result: RankResult, work: Work, mesh: Mesh, *, again: bool = False) -> RankResult:
    peak = device_peak(mesh.device, DTYPES[work.run.precision], again=again)
    return replace(result, peak_flops=peak.flops, peak_source=peak.source)


def _gather(result: RankResult, mesh: Mesh) -> list[RankResult]:
    if mesh.world is None:
        return [result]
    results: list[Any] = [None] * mesh.layout.world_size
    dist.all_gather_object(results, result, group=mesh.world)
    return results
