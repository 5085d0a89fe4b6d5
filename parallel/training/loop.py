"""The training loop on one rank: steps, metrics, evaluation, checkpoints, and a clean end when a signal asks for it."""

import contextlib
import os
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paralab import checkpoint, engines
from paralab.axes import eight_bits
from paralab.axes.initialise import seed_generators
from paralab.axes.precision import DTYPES
from paralab.checkpoint import Saver
from paralab.console.clock import Moment
from paralab.console.phases import Phases
from paralab.engines.engine import ResumableEngine
from paralab.errors import DataError
from paralab.measure.roofline import device_peak, share_of_peak
from paralab.planning.batches import training_batches
from paralab.planning.work import Work
from paralab.processes import cluster
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.records.describe import nodes_of
from paralab.records.log import LogWriter, StepLog, read_log, set_aside
from paralab.records.requested import Requested
from paralab.records.writing import append
from paralab.running import task
from paralab.training import epochs
from paralab.training.evaluate import Evaluator, Validation
from paralab.training.goodput import Pulse, read_progress
from paralab.training.interval import Interval
from paralab.training.layers import LayerLog
from paralab.training.lock import FolderLock
from paralab.training.options import IN_FOLDER, SET_ASIDE, TrainConfig, config_file, log_file, rows_file, usage_file
from paralab.training.outcome import Outcome, record_of
from paralab.training.screen import open_screen
from paralab.training.stop import Stop
from paralab.training.usage import Meter, Used, used_by_all
from paralab.weights.start_from import start_from


def train(rank: Rank, progress: Progress, run: TrainConfig, requested: Requested) -> Outcome:
    """Train on this rank until the steps are done or a signal comes; leave a row either way."""
    folder = Path(run.out or "")
    rows = rows_file(folder)

    def cost(requested: Requested) -> Mapping[str, Any]:
        far, resumes = read_progress(folder), run.resume is not None
        is_own = far is not None and far.has_start(launch=rank.launch, resumes=resumes, began=requested.started)
        return far.columns() if far is not None and is_own else {}  # else it is what another run left

    phases = Phases(requested.started, shown=rank.is_main)
    part = task.on_rank(run, rank, progress, phases=phases, requested=requested, rows=rows, more=cost)
    with _locked(run, rank, requested), part as here:
        phases.begin("building the model")
        training = Training(here.work, rank, here.mesh, progress, here.requested.started, phases)
        outcome = training.run()
        if rank.is_main:
            costs, used = training.cost(), training.used
            append(rows, record_of(here.work, here.requested, rank, here.mesh, outcome, cost=costs, used=used))
    if outcome.stopped_by and rank.world_size > 1:
        # A process that torch's launcher spawned waits, after it returns, for a launcher that is ending as well.
        cluster.leave()
        sys.stdout.flush()
        os._exit(outcome.exit_status)
    return outcome


def _locked(run: TrainConfig, rank: Rank, requested: Requested) -> AbstractContextManager[Any]:
    """Lock the folder of the run, from rank 0. A process that starts the others has done so before."""
    if requested.launcher == "python" or not rank.is_main:
        return contextlib.nullcontext()
    return FolderLock(Path(run.out or ""), starts_again=True, launch=rank.launch)


class Training:
    """One rank's part of a run."""

    def __init__(self, work: Work, rank: Rank, mesh: Mesh, progress: Progress, began: Moment, phases: Phases) -> None:
        assert isinstance(work.run, TrainConfig) and work.run.out is not None
        self.work, self.options, self.mesh, self.progress = work, work.run, mesh, progress
        self.folder = Path(work.run.out)
        self.rank, self.is_main = rank, rank.is_main
        self.screen = open_screen(self.folder, work.run, shown=rank.is_main)
        self.log_file = log_file(self.folder, rank.rank)
        self.log: LogWriter
        self.usage_log: LogWriter
        device_peak(mesh.device, DTYPES[work.run.precision])  # measured now where it is, and not between steps
        self.has_mfu = rank.is_main
        self.epochs_saved = epochs.saved_at(work)
        self.saver = Saver(
            self.folder,
            mesh=mesh,
            keep_last=work.run.keep_last,
            keep_steps=self.epochs_saved,
            timeout_s=work.run.timeout_s,
        )
        self.stop = Stop(mesh)
        self.meter = Meter(mesh, rank=rank.rank)
        self.used: Used | None = None  # once it has ended
        seed_generators(work.run.seed, stage=mesh.rank("pp"), data_rank=mesh.rank("dp"))
        engine = engines.build(work.context(mesh), work.run.engine, ds_config=work.run.ds_config)
        assert isinstance(engine, ResumableEngine), "refused before processes are started"
        self.engine = engine
        self.layers = LayerLog(engine, work.run.layer_stats_every)
        self.evaluate = Evaluator(work, self.engine, most_samples=work.run.eval_samples)
        self.total = work.run.steps + work.run.warmup
        self.outcome = Outcome()
        self.began, self.phases = began, phases
        self.pulse: Pulse | None = None  # of rank 0, once it has started
        self.saved_at = self.evaluated_at = -1
        self.evaluations_without_better = 0

    def mfu(self, steps_per_s: float) -> float | None:
        """Return model FLOPs utilisation of one device, a share (Chowdhery et al. 2022, PaLM, appendix B).

        None where metrics are not shown, and once the run has been faster than the peak, measured again.
        """
        if not self.has_mfu:
            return None
        share = share_of_peak(_device_flops(self.work, steps_per_s), self.mesh.device, DTYPES[self.options.precision])
        self.has_mfu = share is not None
        return share

    def run(self) -> Outcome:
        with self.screen, self.saver, self.stop, self.meter:
            self._start()
            self._steps()
            self._end()
        self.log.close()
        self.usage_log.close()
        if self.pulse is not None:
            self.pulse.end()
        return self.outcome

    def _start(self) -> None:
        """Load what is requested, keep the configuration, say what will be done."""
        run = self.options
        if run.resume == IN_FOLDER:
            self.outcome.step = checkpoint.resume(self.engine, self.folder, say=self.screen.say)
        elif run.resume is not None:
            self.outcome.step = checkpoint.load(self.engine, run.resume, say=self.screen.say)
        if run.init_from is not None and not self.outcome.step:
            start_from(self.engine, run.init_from, trust=run.trust)
        if self.outcome.step and (best := checkpoint.best(self.folder)):
            facts = checkpoint.read_facts(best)
            assert facts.metric is not None, "the best one has a loss"
            self.outcome.best, self.outcome.best_step = Validation(0, facts.metric), facts.step
        self.log = self._open_log()
        self.usage_log = StepLog(usage_file(self.folder, self.rank.rank))
        if self.is_main:
            self.pulse = pulse = self._open_pulse()
            if self.rank.launch is None or not pulse.now.restarts:  # on fewer nodes it is divided otherwise
                replace(run, resume=None).save(config_file(self.folder))
        self.screen.begin(self.work, step=self.outcome.step, total=self.total)
        for epoch in epochs.missed(self.epochs_saved, start=self.outcome.step, folder=self.folder):
            self.screen.say(f"epoch {epoch} was over before this start: of it no checkpoint is kept")

    def _open_pulse(self) -> Pulse:
        rank, layout = self.rank, self.work.layout
        return Pulse(
            self.folder,
            launch=rank.launch,
            began=self.began,
            processes=layout.world_size,
            step=self.outcome.step,
            goes_on=self.options.resume is not None,
        )

    def _open_log(self) -> StepLog:
        """Open the log of this rank, free of steps that an earlier start took and this one takes again."""
        step, aside = self.outcome.step, self.log_file.parent / SET_ASIDE
        files = [(self.log_file, step), (usage_file(self.folder, self.rank.rank), step)]
        if self.is_main:
            ranks = self.work.layout.world_size
            files += [(file, step) for rank, file in _logs(self.log_file.parent) if rank >= ranks]
            files += [(self.folder / "validation.jsonl", step + 1)]  # that of step 3 is about 3 steps done
        if sum(set_aside(file, first_step=first, into=aside) for file, first in files):
            self.screen.say(f"the log of an earlier start has steps from {step} on: they are kept in {aside}")
        return StepLog(self.log_file)

    def cost(self) -> dict[str, Any]:
        """Return the columns that say what interruptions cost, over all starts of this run. For rank 0."""
        assert self.pulse is not None
        far = self.pulse.now
        try:
            share = far.goodput_share(read_log(self.log_file))
        except DataError:  # it was whole when the run began; what the run has made is not lost with it
            share = None
        return far.columns() | {"goodput_share": share}

    def _steps(self) -> None:
        run, outcome = self.options, self.outcome
        batches = training_batches(self.work, self.mesh, start_step=outcome.step)
        interval = Interval(self)
        self.phases.begin("the first step")
        self.phases.end()  # what follows is the bar's
        for step in range(outcome.step, self.total):
            self.progress.step = step
            interval.take(step, batches)
            outcome.step = done = step + 1
            if self.pulse is not None:
                self.pulse.step_done(done)
            self.screen.step(done)
            outcome.stopped_by = self.stop.agreed()
            evaluates, saves = done % run.eval_every == 0, done % run.save_every == 0 or done in self.epochs_saved
            if not (outcome.stopped_by or done == self.total or done % run.log_every == 0 or evaluates or saves):
                continue
            interval.close()
            if outcome.stopped_by:
                return
            if evaluates and not self._goes_on_after_evaluation():
                return
            if saves and done < self.total:  # the end evaluates first: what it saves has a loss
                self._save()
            if evaluates or saves:
                self.meter.goes_on()
            interval = Interval(self)

    def _goes_on_after_evaluation(self) -> bool:
        """Evaluate and keep a better model; return False when there was none for too long."""
        outcome = self.outcome
        with self.engine.agreed():
            found = self.evaluate()
        self.evaluated_at = outcome.step
        better = outcome.best is None or found.loss < outcome.best.loss
        self.evaluations_without_better = 0 if better else self.evaluations_without_better + 1
        self.screen.validation(outcome.step, found, better=better)
        if better:
            outcome.best, outcome.best_step = found, outcome.step
            self._save(found.loss)
        limit = self.options.early_stop
        if limit is None or self.evaluations_without_better < limit:
            return True
        self.screen.say(f"{limit} evaluations without a better loss: stopped early")
        return False

    def _save(self, metric: float | None = None) -> None:
        if self.saved_at != self.outcome.step:
            with self.engine.agreed():
                self.saver.save(self.engine, metric=metric)
            self.saved_at = self.outcome.step

    def _end(self) -> None:
        """Evaluate once more unless a signal is waiting, save, and say where everything is."""
        outcome = self.outcome
        if record := self.meter.read(outcome.step - 1, log=self.usage_log, is_last=True):
            self.screen.used(record)
        if outcome.steps and not outcome.stopped_by and self.evaluated_at != outcome.step:
            self._goes_on_after_evaluation()
        if outcome.steps:
            self._save()
            packed, every = eight_bits.counted(s for x in self.engine.optimizers for s in x.state.values())
            outcome.moments = summed(self.mesh, packed), summed(self.mesh, every)
        self.saver.join()
        self.used = self._used()
        if outcome.steps:
            self.screen.say(f"used: {self.used}")
        self.screen.end(outcome.step, outcome.best, outcome.best_step, stopped_by=outcome.stopped_by)

    def _used(self) -> Used:
        """Put together what all ranks used. Collective."""
        work = self.work
        is_text = work.spec.unit_of(work.model_config) == "tokens"
        units = work.division.global_batch_size * work.spec.units_in_sample(work.model_config)
        nodes = nodes_of(work, self.rank)
        return used_by_all(self.mesh, self.meter, nodes=nodes, tokens_per_step=units if is_text else None)


def _logs(folder: Path) -> list[tuple[int, Path]]:
    """Return rank and path of the logs in a folder."""
    found = ((re.fullmatch(r"rank(\d+)\.jsonl", path.name), path) for path in folder.glob("rank*.jsonl"))
    return [(int(match[1]), path) for match, path in found if match]


def _device_flops(work: Work, steps_per_s: float) -> float:
    """Return the model FLOP/s of one device."""
    per_step = work.spec.flops_of(work.model_config).per_sample * work.division.global_batch_size
    return per_step * steps_per_s / work.layout.world_size


def summed(mesh: Mesh, value: int) -> int:
    """Return the sum of a value over the ranks."""
    if mesh.world is None:
        return value
    total = torch.tensor(value, device=mesh.device)
    dist.all_reduce(total, group=mesh.world)
    return int(total)
