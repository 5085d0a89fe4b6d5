"""What `python -m paralab.benchmarks.sends_less` does in its processes: training, or timing over a link."""

import sys
import time
from collections.abc import Iterator
from itertools import islice

import torch.distributed as dist

from paralab import engines
from paralab.axes.sent import predicted_sent
from paralab.benchmarks.sends_less.gap import Loss, Timing, append, read
from paralab.benchmarks.sends_less.methods import NODES, PERIOD, SendsLessConfig, run_of
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.data.dataset import Batch
from paralab.engines.engine import Engine
from paralab.options.flags import resolve as read_config
from paralab.planning.batches import training_batches
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import make_mesh
from paralab.processes.rank import Rank
from paralab.running import task
from paralab.training.evaluate import Evaluator


def train(rank: Rank, progress: Progress, config: SendsLessConfig, missing: list[tuple[str, int]]) -> None:
    """Train methods, each from a seed, and append their losses on held-out data."""
    phases = Phases(Moment.now(), shown=rank.is_main)
    phases.begin(f"training {len(missing)} times {config.steps} steps", total=len(missing))
    for method, seed in missing:
        for row in _losses(rank, config, method, seed):
            if rank.is_main:
                append(config.folder / "losses.csv", row)
        phases.advance()
    phases.end()


def _losses(rank: Rank, config: SendsLessConfig, method: str, seed: int) -> Iterator[Loss]:
    work = resolve(run_of(config, method, seed))
    engine, batches = _started(rank, work)
    evaluate = Evaluator(work, engine)
    for step in range(0, config.steps + 1, config.eval_every):
        if step:
            for batch in islice(batches, config.eval_every):
                engine.step(batch)
        with engine.agreed():
            loss = evaluate().loss
        yield Loss(method, seed, step, step * work.division.global_batch_size, loss)


def _started(rank: Rank, work: Work) -> tuple[Engine, Iterator[Batch]]:
    mesh = make_mesh(work.layout, rank.device)
    return engines.build(work.context(mesh), "torch"), training_batches(work, mesh)


def time_methods(rank: Rank, progress: Progress, config: SendsLessConfig) -> None:
    """Have the methods take turns in running a few steps, in another order each round, and append their times.

    Turns that are in the folder already are left out; all ranks read it before one of them writes.
    """
    assert config.bandwidths is not None
    link, rows = config.bandwidths[0], read(config.folder / "times.csv", Timing)
    there = {(row.method, row.round) for row in rows if row.link == link}
    works = {method: resolve(run_of(config, method)) for method in config.chosen}
    started = {method: _started(rank, work) for method, work in works.items()}
    for turn in range(-1, config.rounds):  # the first is warm-up, after which turns end when nothing is under way
        first = turn % len(works)
        for method in [*config.chosen[first:], *config.chosen[:first]]:
            if (method, turn) in there:
                continue
            engine, batches = started[method]
            under_way = works[method].run.outer_overlap or 0
            taken = list(islice(batches, PERIOD + (under_way if turn < 0 else 0)))
            dist.barrier()
            began_s = time.perf_counter()
            for batch in taken:
                engine.step(batch)
            dist.barrier()
            step_s = (time.perf_counter() - began_s) / PERIOD
            if rank.is_main and turn >= 0:
                sent = float(sum(predicted_sent(works[method]).wire_bytes.values()))
                append(config.folder / "times.csv", Timing(link, method, turn, step_s, sent))


def main(argv: list[str]) -> None:
    """Time the methods, as one node of a cluster."""
    config = read_config(argv, config=SendsLessConfig, prog="python -m paralab.benchmarks.sends_less.worker")
    task.start("paralab.benchmarks.sends_less.worker:time_methods", config, nproc=NODES, config=config)


if __name__ == "__main__":
    main(sys.argv[1:])
