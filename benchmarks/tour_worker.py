"""What `paralab tour` starts: all strategies that fit this machine, one after the other, in the same processes.

So the table costs one start-up.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist

from paralab.benchmarks.case.run import run_case
from paralab.benchmarks.tour import TourConfig
from paralab.console.clock import Moment
from paralab.console.lines import paragraph
from paralab.console.phases import Phases
from paralab.console.quantities import decimals, size_unit
from paralab.errors import FitError, LayoutError, RankError
from paralab.layout import strategies as named
from paralab.options import heading
from paralab.options.config import RunConfig
from paralab.parity.reference import References
from paralab.parity.scope import prove_on
from paralab.planning import fit
from paralab.planning.requested_layout import machine_processes, with_processes_of
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.allowed import cores_allowed, default_threads
from paralab.processes.failure import Progress
from paralab.processes.rank import Rank
from paralab.records.log import StepLog
from paralab.records.log_files import log_path
from paralab.records.of_axes import sent_bytes
from paralab.records.proven import WHOLE, parity_words
from paralab.records.reading import read
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.writing import append, check_appendable
from paralab.running import task

DEFAULT_OUT = "runs/tour.csv"


def run(config: TourConfig) -> int:
    """Run the tour. Returns: 0, or 1 when a strategy failed or its parity did.

    Raises: RankError when the processes end before a first row is written.
    """
    with heading.printed_once():
        return _run(with_processes_of(config, Rank.from_env()))


def _run(config: TourConfig) -> int:
    nproc = config.nproc or machine_processes()
    out = config.out or DEFAULT_OUT
    check_appendable(out)
    works, left_out = choose(config, nproc)
    works[0].show_data("train")
    group = f"tour-{time.strftime('%Y%m%d-%H%M%S')}"
    _say(_heading(works[0], nproc))
    table = Table.of(works)
    print()
    table.header()
    started_s = time.monotonic()
    stops = [Stop(work.run, _requested(work, group)) for work in works]
    ids = [stop.requested.run_id for stop in stops]
    while remaining := [stop for stop in stops if stop.requested.run_id not in _rows(out, ids)]:
        try:
            task.start("paralab.benchmarks.tour_worker:visit", remaining, table, out, nproc=nproc, config=config)
        except RankError:
            pass  # the rank that failed has said so, and left a row
        if not heading.is_first_process():
            return 0  # the rows are those of the first process
        if not _rows(out, [stop.requested.run_id for stop in remaining]):
            raise RankError("no strategy could be started: see the lines above")
    table.rule()
    for name, reason in left_out.items():
        _say(f"{name} left out: {reason}")
    records = list(_rows(out, ids).values())
    print()
    for sentence in conclusions(records, cores=cores_allowed()):
        _say(sentence)
    print(f"({time.monotonic() - started_s:.0f} s, rows in {out})\n\nNext:")
    for purpose, command in next_commands(config, records, out).items():
        print(f"{paragraph(purpose, indent='  ')}:\n    {command}")
    return 0 if all(record.status == "ok" and record.parity is not False for record in records) else 1


@dataclass(frozen=True)
class Stop:
    """One strategy of a tour: the run, and what was requested, with the id that all ranks log under."""

    run: RunConfig
    requested: Requested


def _requested(work: Work, group: str) -> Requested:
    return Requested(
        strategy=work.strategy,
        nproc=work.layout.world_size,
        precision=work.run.precision,
        group=group,
        command=work.command,
        launcher=Rank.from_env().launcher,
    )


def _rows(out: str, ids: Sequence[str]) -> dict[str, RunRecord]:
    """Return the rows that are there of these runs, by id, in the order of the runs."""
    found = {record.run_id: record for record in (read(out) if Path(out).exists() else ())}
    return {run_id: found[run_id] for run_id in ids if run_id in found}


def _say(text: str) -> None:
    """Print a paragraph in lines that fit the terminal."""
    print(paragraph(text), flush=True)


def choose(config: TourConfig, nproc: int) -> tuple[list[Work], dict[str, str]]:
    """Return the strategies that fit nproc processes and this model, and why the others do not.

    Raises: LayoutError when none fits.
    """
    works: list[Work] = []
    left_out: dict[str, str] = {}
    if nproc == 1:
        on_one_gpu = torch.cuda.is_available() and torch.cuda.device_count() == 1
        more = "type CUDA_VISIBLE_DEVICES= before the command to see them on the CPU" if on_one_gpu else "use --nproc 2"
        left_out["others"] = f"they need 2 processes or more, on a GPU each where there are any: {more}"
    for name in named.STRATEGIES if nproc > 1 else ("single",):
        try:
            layout = named.layout_of(name, nproc)
            work = resolve(replace(config, layout=layout, strategy=None, nproc=None))
            fit.refuse(work, force=config.force)
            works.append(work)
        except (LayoutError, FitError) as error:
            left_out[name] = str(error)
    if not works:
        raise LayoutError("; ".join(f"{name} left out: {reason}" for name, reason in left_out.items()))
    return works, left_out


def visit(rank: Rank, progress: Progress, stops: list[Stop], table: "Table", out: str) -> None:
    """Measure each run in turn on this rank; rank 0 prints and writes its row."""
    references = References()
    for run, requested in ((stop.run, replace(stop.requested, started=Moment.now())) for stop in stops):
        phases = Phases(requested.started, shown=rank.is_main, transient=True, between_lines=True)
        with task.on_rank(run, rank, progress, phases=phases, requested=requested, rows=out) as here:
            if rank.rank < here.work.layout.world_size:
                phases.begin(f"{here.work.strategy}: starting")
                record = _measured(here, rank, progress, phases, references, out)
                phases.end()
                if rank.is_main:
                    append(out, record)
                    table.row(record)
            if dist.is_initialized():
                dist.barrier()


def _measured(
    here: task.Here, rank: Rank, progress: Progress, phases: Phases, references: References, out: str
) -> RunRecord:
    """Prove and measure one run on a rank of its mesh, on all threads where the others are waiting."""
    work, threads = here.work, torch.get_num_threads()
    if work.layout.world_size == 1 and not work.run.threads:
        torch.set_num_threads(default_threads(1))
    record = run_case(
        work,
        requested=here.requested,
        rank=rank,
        mesh=here.mesh,
        proof=prove_on(work, here.mesh, rank, references),
        log=StepLog(log_path(out, here.requested.run_id, rank.rank)),
        progress=progress,
        phases=phases,
    )
    torch.set_num_threads(threads)
    return record


_STATE_BYTES = 16  # of a parameter: itself, its gradient and both states of AdamW, in fp32
_PARITY = {True: "passed", False: "FAILED", None: "none"}


def is_proved_in_part(record: RunRecord) -> bool:
    """Return whether a run passed parity where fewer blocks or samples than it has were compared."""
    return record.parity is True and record.parity_scope not in (None, WHOLE)


def _size(size_bytes: float | None, scale: int, places: int) -> str:
    return "" if size_bytes is None else decimals(size_bytes / scale, places)


@dataclass(frozen=True)
class Table:
    """The growing table of a tour: a row when a strategy is done. It fits 80 columns.

    layout_width: of the longest layout, in characters. scale: bytes of the unit of all sizes. unit: its name.
    """

    layout_width: int
    scale: int = 1 << 20
    unit: str = "MiB"

    # name, width, and what stands in a row; the first three are words, the others numbers
    COLUMNS: ClassVar[tuple[tuple[str, int, Callable[[RunRecord, int], str]], ...]] = (
        ("strategy", 8, lambda r, _: r.strategy or ""),
        ("layout", 0, lambda r, _: r.layout or ""),
        ("parity", 6, lambda r, _: "part" if is_proved_in_part(r) else _PARITY[r.parity]),
        ("loss", 6, lambda r, _: f"{r.loss_last:.3f}"),
        ("tokens/s", 8, lambda r, _: f"{r.tokens_per_s or r.samples_per_s:,.0f}"),
        ("peak {}", 8, lambda r, scale: _size(r.memory_tensors_peak_bytes, scale, 0)),
        ("state {}", 9, lambda r, scale: _size(r.memory_state_peak_bytes, scale, 1)),
        ("sent {}", 8, lambda r, scale: _size(sent_bytes(r), scale, 1)),
    )

    @classmethod
    def of(cls, works: Sequence[Work]) -> "Table":
        least = min(work.n_parameters / work.layout.world_size for work in works)
        return cls(max(len(str(work.layout)) for work in works), *size_unit([_STATE_BYTES * least]))

    def header(self) -> None:
        print(self._line([name.format(self.unit) for name, _, _ in self.COLUMNS]))
        self.rule()

    def rule(self) -> None:
        print("-" * len(self._line([""] * len(self.COLUMNS))), flush=True)

    def row(self, record: RunRecord) -> None:
        print(self._line([cell(record, self.scale) for _, _, cell in self.COLUMNS]), flush=True)
        if record.parity is False:
            _say(f"  {record.strategy} differs from one process: {differences(record)}")
        elif is_proved_in_part(record) or record.parity is None:
            _say(f"  {record.strategy}: parity {parity_words([record])}")

    def _line(self, cells: list[str]) -> str:
        widths = [width or self.layout_width for _, width, _ in self.COLUMNS]
        words = [f"{cell:<{width}}" for cell, width in zip(cells[:3], widths[:3], strict=True)]
        numbers = [f"{cell:>{width}}" for cell, width in zip(cells[3:], widths[3:], strict=True)]
        return " ".join(words + numbers)


def differences(record: RunRecord) -> str:
    """Say how far a run was from one process, in all that is compared."""
    return (
        f"loss {record.loss_difference_max:.1e}, gradient norm {record.grad_norm_difference_max:.1e} (relative), "
        f"parameters {record.parameter_difference_max:.1e}"
    )


def _heading(work: Work, nproc: int) -> str:
    one, several = ("GPU", "GPUs") if torch.cuda.is_available() else ("process on a CPU", "processes on a CPU")
    return (
        f"{work.spec.name} {work.size}: {work.parameters_text}, "
        f"{work.division.global_batch_size} samples a step, {work.run.precision}, "
        f"{nproc} {several if nproc > 1 else one}"
    )


def conclusions(records: Sequence[RunRecord], *, cores: float) -> list[str]:
    """Return what one saw, in three sentences: what agrees, what is fast, what is small.

    cores: that this machine lets us use; processes on a CPU share them.
    """
    good = [record for record in records if record.status == "ok" and record.parity]
    said = [_agreement(records, good)]
    if len(good) > 1:
        fastest = max(good, key=lambda r: r.samples_per_s or 0.0)
        unit = fastest.unit if fastest.tokens_per_s else "samples"
        rate = f"{fastest.tokens_per_s or fastest.samples_per_s:,.0f} {unit}/s"
        shared = (
            f": the processes share {cores:g} CPU cores, so this shows what a strategy costs, "
            "not what it would gain on devices of its own"
        )
        said.append(f"Fastest here: {fastest.strategy}, {rate}{shared if fastest.device == 'cpu' else ''}.")
        least, most = (pick(good, key=lambda r: r.memory_state_peak_bytes or 0) for pick in (min, max))
        scale, size = size_unit([least.memory_state_peak_bytes or 0])
        held = [_size(record.memory_state_peak_bytes, scale, 1) for record in (least, most)]
        predicted = [_size(record.predicted_state_bytes, scale, 1) for record in (least, most)]
        said.append(
            f"Smallest: {least.strategy} keeps {held[0]} {size} of parameters, gradients and optimizer states on its "
            f"fullest rank, {most.strategy} {held[1]}; predicted were {' and '.join(predicted)}."
        )
    return said


def _agreement(records: Sequence[RunRecord], good: Sequence[RunRecord]) -> str:
    counted = f"{len(good)} of {len(records)} strategies compute what one process computes"
    if not good:
        return f"{counted}."
    loss, norm = (
        max(getattr(r, name) or 0.0 for r in good) for name in ("loss_difference_max", "grad_norm_difference_max")
    )
    part = [str(record.strategy) for record in good if is_proved_in_part(record)]
    compared = f"{', '.join(part)} on a part of the work" if part else "every parameter compared"
    return f"{counted}: losses within {loss:.0e}, gradient norms within {norm:.0e}, {compared}."


def next_commands(config: TourConfig, records: Sequence[RunRecord], out: str) -> dict[str, str]:
    """Return what to do after a tour, and the line to type for it."""
    found = {"see it as tables and charts": f"paralab report {out} --out {Path(out).with_suffix('.html')}"}
    good = [record for record in records if record.status == "ok" and record.parity and record.strategy != "single"]
    model = shlex.quote(config.model)
    if not good:
        return found | {"train for real": f"paralab train --model {model} --strategy single --out runs/first"}
    fastest = max(good, key=lambda r: r.samples_per_s or 0.0)
    smallest = min(good, key=lambda r: r.memory_state_peak_bytes or 0)
    of_model = f"--model {model}" + (f" --size {shlex.quote(config.size)}" if config.size else "")
    explain = f"paralab explain {smallest.strategy} {of_model} --nproc {smallest.world_size}"
    found |= {f"see what each rank of {smallest.strategy} holds and sends": explain}
    if fastest is smallest:
        return found
    names = f"{fastest.strategy},{smallest.strategy}"
    why = f"repeat {fastest.strategy} (the fastest of several processes) and {smallest.strategy} (the smallest)"
    return found | {why: f"paralab bench {of_model} --strategies {names} --nprocs {fastest.world_size}"}
