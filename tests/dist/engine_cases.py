"""Parity results of engines, for workers and for scripts under a launcher."""

import time
from itertools import islice
from typing import Any

import torch.distributed as dist
from torch.distributed.tensor import DTensor

from paralab import checkpoint, engines
from paralab.axes.blocks import blocks_of
from paralab.measure.exposed import ExposedCommunication
from paralab.measure.memory import MemoryCensus, MemoryReport
from paralab.measure.split import Split
from paralab.options.choices import EngineChoice
from paralab.options.config import RunConfig
from paralab.parity.prove import judge
from paralab.parity.reference import Trace, reference, reference_key
from paralab.parity.result import ParityResult
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.mesh import Mesh, make_mesh
from paralab.processes.rank import Rank
from paralab.training.evaluate import Evaluator, Validation
from paralab.weights.start_from import start_from
from tests.dist.gloo import let_go

STEPS = 3
_references: dict[tuple, Trace] = {}


def parity_result(
    rank: Rank, run: RunConfig, engine: EngineChoice, ds_config: str | None = None
) -> tuple[str, ParityResult]:
    """Train a case with an engine and compare it with one process; return the engine's class as well."""
    work = resolve(run)
    return prove_engine(work, make_mesh(work.layout, rank.device), engine, ds_config)


def prove_engine(work: Work, mesh: Mesh, engine: EngineChoice, ds_config: str | None) -> tuple[str, ParityResult]:
    key = reference_key(work)
    if key not in _references:
        _references[key] = reference(work, mesh, steps=STEPS)
    built = engines.build(work.context(mesh), engine, ds_config=ds_config)
    results = [built.step(batch) for batch in islice(training_batches(work, mesh), STEPS)]
    got = Trace([r.loss.item() for r in results], [r.grad_norm.item() for r in results])
    return type(built).__name__, judge(built, got, _references[key], work, mesh)


def sharded(rank: Rank, run: RunConfig) -> set[bool]:
    """Return whether the parameters are shards of torch's FSDP: of all of them, and of none, one answer."""
    work = resolve(run)
    built = engines.build(work.context(make_mesh(work.layout, rank.device)), "torch")
    return {isinstance(parameter, DTensor) for _, parameter in built.parameters()}


def split_with_a_slow_rank(rank: Rank, run: RunConfig, engine: EngineChoice, slept_s: float) -> Split | None:
    """Take a step in which rank 0 sleeps so long; return where each rank's time went."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    if rank.rank >= work.layout.world_size:
        return None
    built = engines.build(work.context(mesh), engine)
    batches = training_batches(work, mesh)
    built.step(next(batches))
    if rank.rank == 0:
        naps = iter([slept_s])
        next(iter(blocks_of(built.parts[0]).values())).register_forward_pre_hook(lambda *_: time.sleep(next(naps, 0.0)))
    dist.barrier(group=mesh.world)
    with ExposedCommunication(mesh.device, mesh.groups()) as seen:
        built.step(seen.next(batches))
    return seen.split


def memory(rank: Rank, run: RunConfig, engine: EngineChoice, ds_config: str | None = None) -> tuple[int, MemoryReport]:
    """Return how many parameters the model has, and what the second step of a case holds on this rank."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    built = engines.build(work.context(mesh), engine, ds_config=ds_config)
    batches = training_batches(work, mesh)
    built.step(next(batches))
    with MemoryCensus(built.parts, built.optimizers, held=built.held) as census:
        built.step(next(batches))
        let_go()
    return work.n_parameters, census.report()


def saved_by_deepspeed(rank: Rank, run: RunConfig, folder: str) -> float:
    """Take a step, let DeepSpeed save its own checkpoint; return the loss of the next step."""
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    built: Any = engines.build(work.context(mesh), "deepspeed")
    batches = training_batches(work, mesh)
    built.step(next(batches))
    built.engine.save_checkpoint(folder)
    return built.step(next(batches)).loss.item()


def relay(rank: Rank, legs: list[tuple[EngineChoice, RunConfig]], folder: str, steps: int) -> list[float]:
    """Hand a run from engine to engine through checkpoints; return the losses of this rank's steps."""
    losses: list[float] = []
    for engine, run in legs:
        built = _built(rank, run, engine)
        if built is None:  # a layout of fewer ranks
            continue
        checkpoint.resume(built, folder, say=print)
        losses += _losses(built, steps)
        checkpoint.save(built, folder)
        if len(losses) == steps:  # what is loaded must replace what is remembered
            once = _losses(built, 2)
            assert checkpoint.load(built, folder) == steps
            assert _losses(built, 2) == once
    return losses


def evaluated(
    rank: Rank, run: RunConfig, engine: EngineChoice, weights: str
) -> tuple[Validation, Validation, list[float]]:
    """Start from weights; evaluate, train, evaluate, train. Return what was found and the losses."""
    built = _built(rank, run, engine)
    start_from(built, weights)
    evaluator = Evaluator(resolve(run), built, most_samples=5)  # not the same number on each rank
    first, losses = evaluator(), _losses(built, 1)
    return first, evaluator(), losses + _losses(built, 1)


def _built(rank: Rank, run: RunConfig, engine: EngineChoice) -> Any:
    work = resolve(run)
    mesh = make_mesh(work.layout, rank.device)
    return engines.build(work.context(mesh), engine) if rank.rank < work.layout.world_size else None


def _losses(built: Any, steps: int) -> list[float]:
    batches = training_batches(resolve(built.context.run), built.context.mesh, start_step=built.steps_done)
    return [built.step(batch).loss.item() for batch in islice(batches, steps)]
