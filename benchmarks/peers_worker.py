"""What one process of `paralab peers` does: it trains one variant, of ours or a baseline, and measures it."""

import json
import statistics
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from paralab import engines
from paralab.axes.precision import DTYPES
from paralab.benchmarks import baselines
from paralab.benchmarks.case.run import run_case
from paralab.benchmarks.peers import PREFIX, PeersConfig, run_of
from paralab.console.phases import hidden
from paralab.measure.roofline import measured_peak
from paralab.options.config import RunConfig
from paralab.options.flags import resolve as read_config
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes import cluster
from paralab.processes.at_exit import wait_for_gloo
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh, make_mesh
from paralab.processes.rank import Rank
from paralab.records.row import RunRecord
from paralab.running import task


def measure(variant: str, argv: list[str]) -> int:
    """Train one variant in this process, one of its ranks, and print the result on rank 0."""
    config = read_config(argv, config=PeersConfig, prog="paralab peers")
    if config.model == "own":
        return _train_own(variant, config)
    ours = variant.startswith("ours ")
    work = resolve(run_of(variant, config))
    rank = Rank.from_env()
    if ours:
        result = task.start("paralab.benchmarks.peers_worker:measure_ours", work.run, nproc=work.layout.world_size)
    else:
        if rank.world_size > 1:
            wait_for_gloo()
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        mesh = make_mesh(work.layout, rank.device)
        result = _measured(work, rank, mesh, lambda: baselines.make_step(variant, work, rank.device))
        cluster.leave()
    if rank.is_main:
        print(PREFIX + json.dumps(result), flush=True)
    return 0


def _train_own(variant: str, config: PeersConfig) -> int:
    """Train the own module by one variant in this process, one of its ranks, and print the result on rank 0."""
    from paralab.benchmarks import own_loops

    rank = Rank.from_env()
    result = own_loops.measure(variant, config)
    cluster.leave()
    if rank.is_main:
        print(PREFIX + json.dumps(result), flush=True)
    return 0


def measure_ours(rank: Rank, progress: Progress, run: PeersConfig) -> dict[str, Any]:
    """Return the time of a step of paralab's, the losses and the share of the roofline, on every rank."""
    with task.on_rank(run, rank, progress, phases=hidden()) as here:

        def make_step() -> Callable[[Any], float]:
            engine = engines.build(here.work.context(here.mesh), "torch")
            return lambda batch: engine.step(batch).loss.item()

        return _measured(here.work, rank, here.mesh, make_step)


def _measured(work: Work, rank: Rank, mesh: Mesh, make_step: Callable[[], Callable[[Any], float]]) -> dict[str, Any]:
    """Take the steps of one variant on this rank. make_step: returns what takes a batch and gives its loss."""
    config = work.run
    batches = list(islice(training_batches(work, mesh), config.warmup + config.steps))
    step = make_step()
    losses, times = [], []
    for batch in batches:
        start = time.perf_counter()
        losses.append(step(batch))
        times.append(time.perf_counter() - start)
    step_s = statistics.median(times[config.warmup :])
    flops = work.spec.flops_of(work.model_config).per_sample * work.division.global_batch_size
    achieved = flops / step_s / rank.world_size
    dtype = DTYPES[config.precision]
    peak = measured_peak(rank.device.type, dtype)
    if achieved > peak.flops:
        peak = measured_peak(rank.device.type, dtype, again=True)
    return {"step_s": step_s, "losses": losses, "roofline": achieved / peak.flops}


def measure_memory(rank: Rank, progress: Progress, run: RunConfig) -> RunRecord:
    """Return the record of a case, on every rank."""
    with task.on_rank(run, rank, progress, phases=hidden()) as here:
        return run_case(here.work, requested=here.requested, rank=rank, mesh=here.mesh, progress=progress)
