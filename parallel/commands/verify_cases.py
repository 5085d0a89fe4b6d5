"""The cases of `paralab verify`, and how they are compared on every rank.

For each strategy, schedule and accumulation: a few optimizer steps on the same weights, data and seed as one
process, then the largest difference of loss, global gradient norm and every parameter against a tolerance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from paralab.axes.data.approximate import approximation
from paralab.commands import verify_around
from paralab.commands.verify import VerifyConfig
from paralab.commands.verify_around import Agreement
from paralab.console.clock import Moment
from paralab.console.lines import MOST, paragraph
from paralab.console.phases import Phases
from paralab.errors import ConfigError, FitError, LayoutError, UsageError
from paralab.layout import SCHEDULES, Layout
from paralab.layout import strategies as named
from paralab.models import SPECS, label_of
from paralab.options import heading
from paralab.parity import model_rules, scope
from paralab.parity.prove import prove
from paralab.parity.reference import STEPS, References
from paralab.parity.result import ParityResult
from paralab.parity.tolerances import tolerance_of
from paralab.planning import fit
from paralab.planning.requested_layout import machine_processes, with_processes_of
from paralab.planning.resolve import resolve
from paralab.planning.work import Work
from paralab.processes.failure import Progress
from paralab.processes.mesh import Mesh
from paralab.processes.rank import Rank
from paralab.running import task

_HEADS = ("strategy", "layout", "accum", "loss", "grad norm", "parameters", "")
_WIDTHS = (8, 6, 5, 7, 9, 10, 6)  # in which a line has 80 characters with a layout of 27
_NAME = len("resumed in one process, ")  # the longest name of what surrounds the steps


def run(config: VerifyConfig) -> int:
    """Print a table of parity results. Returns: 0 when all pass, 1 when one fails.

    Raises: LayoutError when no case fits; ModelError when the model breaks a rule; UsageError for what cannot run.
    """
    with heading.printed_once():
        return _run(config)


def _run(config: VerifyConfig) -> int:
    began, spec = Moment.now(), SPECS[config.model]
    config, nproc = completed(config)
    precision = config.precision
    runs = list(cases(config, nproc))
    if not runs:
        raise LayoutError("no case fits, see the lines above: change --nproc, --strategy or --engine")
    work = resolve(runs[0])
    model_rules.check(spec, work.model_config)
    work.show_data("train")
    tolerance = tolerance_of(work)
    print(
        f"{label_of(config.model)} {config.size} in {precision}, {STEPS} steps of {config.optimizer}, {nproc} "
        f"process{'es' if nproc > 1 else ''} against one in {'fp64' if precision == 'fp64' else 'fp32'}."
    )
    tolerances = (
        f"Tolerance: loss {tolerance.loss:.0e} and gradient norm {tolerance.grad_norm:.0e}, relative; "
        f"parameters {tolerance.parameters:.1g} of how far the steps move them (without learning-rate warm-up)."
    )
    print(f"{paragraph(tolerances)}\n")
    task.announce(nproc, Phases(began, shown=heading.is_first_process()))
    print(_cells(_HEADS, _room(runs)), flush=True)
    compared = task.start("paralab.commands.verify_cases:prove_all", runs, nproc=nproc, config=config)
    failed = [result for result in compared if not result.passed]
    print(f"\n{len(compared) - len(failed)} of {len(compared)} passed")
    if not compared:
        raise FitError(
            "nothing was proved, no part of the reference fits into memory: use a smaller --size, or more memory"
        )
    print(paragraph(f"Not covered: {', '.join(_not_covered(runs, compared))}."))
    return 1 if failed else 0


def completed(config: VerifyConfig) -> tuple[VerifyConfig, int]:
    """Return what to prove with its size and precision chosen, and the number of processes."""
    spec, config = SPECS[config.model], with_processes_of(config, Rank.from_env())
    precision = config.precision or ("fp32" if spec.smooth else "fp64")
    nproc = config.nproc or (config.layout.world_size if config.layout else machine_processes())
    return replace(config, precision=precision, size=config.size or spec.tiny_size), nproc


def _not_covered(runs: list[VerifyConfig], compared: list[ParityResult | Agreement]) -> Iterator[str]:
    """Yield what strategies can do and was not compared here, and what to type for it."""
    layouts = [run.layout for run in runs if run.layout is not None]
    if not any(layout.sequence_parallel for layout in layouts) and SPECS[runs[0].model].sequence_parallel:
        yield "sequence parallelism (--nproc 2 or more, without --strategy)"
    if not any(layout.dp % 2 and layout.dp > 1 and layout.zero for layout in layouts):
        yield "rows that do not divide (--nproc 4 without --strategy)"
    if not any(len(layout.axes) >= 3 for layout in layouts):
        yield "three axes at once (--strategy 3d --nproc 8)"
    around = [result.name for result in compared if isinstance(result, Agreement)]
    if not around:
        typed = "--accumulation 1" if all(run.accumulation > 1 for run in runs) else "--engine torch"
        yield f"data order, validation and checkpoints ({typed})"
    elif "validation loss" not in around:
        yield "the validation loss (no samples, or running statistics that each rank has of its own)"
    missing = [name for name in ("bf16", "fp16") if all(run.precision != name for run in runs)]
    if missing:
        yield f"{' and '.join(missing)} (--precision)"
    engines = {resolve(run).run.engine for run in runs[:1]}
    yield f"{' and '.join(name for name in ('torch', 'deepspeed', 'accelerate') if name not in engines)} (--engine)"
    if runs[0].checkpointing == "none":
        yield "activation checkpointing (--checkpointing full)"
    if runs[0].compile == "none":
        yield "torch.compile (--compile default)"
    if not torch.cuda.is_available():
        yield "GPUs"
    yield f"more than {STEPS} steps"


def _refuse_approximate(work: Work) -> None:
    """Raise ConfigError for a case that does not claim to compute what one process computes."""
    if (departs := approximation(work.run, work.layout)) is not None:
        raise ConfigError(f"no parity is claimed where {departs}: leave it out, or use paralab run, which measures it")


def cases(config: VerifyConfig, nproc: int) -> Iterator[VerifyConfig]:
    """Yield the cases: what was requested, or all that fit."""
    if config.layout is not None:
        _refuse_approximate(resolve(config))
        fit.refuse(resolve(config), force=config.force)
        yield config
        return
    force = config.force or config.size == SPECS[config.model].tiny_size  # these fit
    left_out: dict[str, dict[Layout, None]] = {}  # layouts, by why
    every = [name for name in named.STRATEGIES if (name == "single") == (nproc == 1)]
    names = [config.strategy] if config.strategy else every
    for name in names:
        try:
            layouts = list(_layouts(named.layout_of(name, nproc)))
        except LayoutError as error:
            if config.strategy:
                raise
            print(f"{name} left out: {error}")
            continue
        for layout in layouts:
            for accumulation in (1,) if SPECS[config.model].whole_batch else (1, 2):
                case = replace(config, layout=layout, strategy=None, nproc=None, accumulation=accumulation)
                try:
                    work = resolve(case)
                    _refuse_approximate(work)
                    fit.refuse(work, force=force)
                except (LayoutError, FitError) as error:
                    left_out.setdefault(str(error), {})[layout] = None
                    continue
                yield case
    for why, which in left_out.items():
        print(f"{', '.join(map(str, which))} left out: {why}")
    if config.strategy is None:
        yield from _further(config, nproc)


def _further(config: VerifyConfig, nproc: int) -> Iterator[VerifyConfig]:
    """Yield what strategies alone do not show: split sequences and heads, rows that do not divide, bf16."""
    if nproc < 2:
        return
    wanted: list[tuple[str, dict[str, Any]]] = []
    if SPECS[config.model].sequence_parallel:
        wanted.append((f"tp{nproc}/sp", {}))
        if nproc % 2 == 0 and nproc > 2:
            wanted.append((f"tp2.pp{nproc // 2}/mb{nproc}/sp", {}))
    spec = SPECS[config.model]
    if spec.sequence(spec.config(config.size)):
        wanted.append((f"cp{nproc}/ulysses", {}))
        if nproc % 2 == 0 and nproc > 2:
            wanted.append((f"dp2.cp{nproc // 2}/zero3", {}))
    if nproc > 3:
        wanted += [(f"dp3/zero{stage}", {}) for stage in (1, 3)]
    if config.precision in ("fp32", "fp64"):
        wanted += [(f"dp{nproc}/zero{stage}", {"precision": "bf16"}) for stage in (1, 3)]
    for layout, options in wanted:
        case = replace(config, layout=Layout.parse(layout), strategy=None, nproc=None, **options)
        try:
            fit.refuse(resolve(case), force=config.force or config.size == SPECS[config.model].tiny_size)
        except UsageError as error:
            print(f"{layout} left out: {error}")
            continue
        yield case


def _layouts(layout: Layout) -> Iterator[Layout]:
    """Yield a layout under every schedule that it may have."""
    if layout.schedule in (None, "naive"):
        yield layout
        return
    for schedule in SCHEDULES.values():
        if schedule.name != "naive":
            yield layout.but(schedule=schedule.name)


def prove_all(rank: Rank, progress: Progress, runs: list[VerifyConfig]) -> list[ParityResult | Agreement]:
    """Prove each case on this rank, and what surrounds the steps of some; rank 0 prints as it goes.

    Where the reference does not fit, a case is proved on a part of it; where no part fits, it is said and not counted.
    """
    room = _room(runs)
    references, whole = References(), True
    phases = Phases(Moment.now(), shown=rank.is_main, transient=True, between_lines=True)
    compared: list[ParityResult | Agreement] = []
    for number, run in enumerate(runs, start=1):
        layout = resolve(run).layout
        phases.begin(f"case {number} of {len(runs)}: {layout}, accumulation {run.accumulation}, {run.precision}")
        with task.on_rank(run, rank, progress, phases=phases) as here:
            if rank.rank < layout.world_size:
                part = _part(here.work, here.mesh, rank)
                result = prove(part, here.mesh, references.get(part, here.mesh)) if part is not None else None
                compared += [result] if result is not None else []
                whole = whole and part is here.work
                phases.end()
                if rank.is_main:
                    print(_remarked(_line(here.work, result, room), _remarks(here.work, part, runs[0])), flush=True)
                    if result is not None and result.first:
                        print(f"    {result.first}", flush=True)
            if dist.is_initialized():
                dist.barrier()
    surrounded = _surrounded(runs, rank) if whole else []
    if surrounded and rank.is_main:
        print()
    for work in surrounded:
        phases.begin(f"data order, validation and checkpoints under {work.layout}")
        with task.on_rank(work.run, rank, progress, phases=phases) as here:
            for agreement in verify_around.compare(here.work, here.mesh, validates=_validates(here.work)):
                compared.append(agreement)
                phases.end()
                if rank.is_main:
                    print(_line_of(agreement, room))
    return compared


def _part(work: Work, mesh: Mesh, rank: Rank) -> Work | None:
    """Return what of a case its reference fits for: all of it, a part, or None."""
    if work.size == work.spec.tiny_size:
        return work
    return scope.choose(work, mesh, processes=scope.processes_here(work, rank))


def _remarks(work: Work, part: Work | None, first: VerifyConfig) -> str:
    """Return in what a case differs from the first one, and on which part it was proved where that is not the whole."""
    remarks = [] if work.run.precision == first.precision else [str(work.run.precision)]
    remarks += [] if part is work else [scope.describe(part, work)]
    return f"({'; '.join(remarks)})" if remarks else ""


def _remarked(line: str, remarks: str) -> str:
    """Return a line with what is to be said of it: behind it where there is room, else below."""
    return f"{line} {remarks}".rstrip() if not remarks or len(line) + len(remarks) < MOST else f"{line}\n    {remarks}"


def _surrounded(runs: list[VerifyConfig], rank: Rank) -> list[Work]:
    """Return the cases of which data, validation and checkpoints are compared: one with data ranks, one without."""
    works = [resolve(run) for run in runs if run.accumulation == 1 and run.precision == runs[0].precision]
    here = [w for w in works if w.layout.world_size == rank.world_size == rank.local_world_size]
    able = [w for w in here if w.run.engine == "torch"]
    split = [w for w in reversed(able) if w.layout.dp > 1 and w.layout.zero]
    staged = [w for w in able if w.layout.pp > 1 and w.layout.schedule == "1f1b"]
    return list({w.layout: w for w in ((split or able)[:1] + staged[:1])}.values())


def _validates(work: Work) -> bool:
    try:
        alike = work.spec.statistics_over(work.model_config) != "rank"  # running statistics, on all ranks
        return alike and bool(work.dataset("validation").n_samples)
    except UsageError:
        return False


def _line_of(agreement: Agreement, room: int) -> str:
    """Return the line of what surrounds the steps, with its one difference."""
    name, verdict = f"{agreement.name}, {agreement.layout}", "passed" if agreement.passed else "FAILED"
    return f"{name:<{_NAME + room}} {agreement.difference:.1e} {verdict}"


def _line(work: Work, c: ParityResult | None, room: int) -> str:
    differences = (c.loss_difference, c.grad_norm_difference, c.parameter_difference) if c is not None else ()
    said = (work.strategy, str(work.layout), str(work.run.accumulation))
    found = (f"{difference:.1e}" for difference in differences)
    return _cells([*said, *found, c.verdict if c else ""], room)


def _room(runs: Sequence[VerifyConfig]) -> int:
    """Return how many characters the longest layout has that will be compared."""
    return max(len(str(resolve(run).layout)) for run in runs)


def _cells(cells: Sequence[str], room: int) -> str:
    """Return a line of the table. room: characters of the longest layout."""
    widths = [max(width, room) if head == "layout" else width for head, width in zip(_HEADS, _WIDTHS, strict=True)]
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
