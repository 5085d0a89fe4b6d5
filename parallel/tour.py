"""Train one model under every strategy that fits this machine, side by side: `paralab tour`.

All strategies run one after the other in the same processes, so that the table costs one start-up.
"""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from parallel import cluster, parity, strategies
from parallel.case import Asked, failed, run_case
from parallel.cluster import Rank
from parallel.config import RunConfig, option
from parallel.config import resolve as read_config
from parallel.errors import ConfigError, LayoutError, RankError
from parallel.failure import Failure, Progress, guard
from parallel.launch import launch
from parallel.measure.record import RunRecord, StepLog, append, check_appendable, log_path, read
from parallel.parity import References
from parallel.resolve import Work, machine_processes, resolve

DEFAULT_OUT = "runs/tour.csv"


@dataclass(frozen=True, kw_only=True)
class TourConfig(RunConfig):
    """What all strategies of a tour share."""

    steps: int = option(8, "optimizer steps, warm-up not counted", group="steps", at_least=1)
    warmup: int = option(2, "steps run first and left out of the timing", group="steps", at_least=0)


def main(argv: list[str]) -> int:
    """Run the tour. Returns: 0, or 1 when a strategy failed or its parity did."""
    config = read_config(argv, config=TourConfig, prog="paralab tour", description=__doc__)
    if config.strategy is not None or config.layout is not None:
        raise ConfigError("paralab tour runs every strategy: use paralab run for one, or leave it out")
    nproc = config.nproc or machine_processes()
    out = config.out or DEFAULT_OUT
    check_appendable(out)
    works, left_out = choose(config, nproc)
    works[0].show_data("train")
    group = f"tour-{time.strftime('%Y%m%d-%H%M%S')}"
    print(_heading(works[0], nproc), flush=True)
    table = Table()
    table.header()
    started = time.monotonic()
    remaining = [work.run for work in works]
    while remaining:
        try:
            launch("parallel.tour:visit", remaining, group, out, shlex.join(argv), nproc=nproc, config=config)
        except RankError:
            pass  # the rank that failed has said so, and left a row
        done = {record.layout for record in read(out) if record.group == group}
        if not done & {str(run.layout) for run in remaining}:
            raise RankError("no strategy could be started: see the lines above")
        remaining = [run for run in remaining if str(run.layout) not in done]
    table.rule()
    for name, reason in left_out.items():
        print(f"{name:<9} left out: {reason}")
    records = [record for record in read(out) if record.group == group]
    print(f"\n{_verdict(records)}  ({time.monotonic() - started:.0f} s)\nrows in {out}")
    return 0 if all(record.status == "ok" and record.parity for record in records) else 1


def choose(config: TourConfig, nproc: int) -> tuple[list[Work], dict[str, str]]:
    """Return the strategies that fit nproc processes and this model, and why the others do not."""
    works: list[Work] = []
    left_out: dict[str, str] = {}
    if nproc == 1:
        on_one_gpu = torch.cuda.is_available() and torch.cuda.device_count() == 1
        more = "type CUDA_VISIBLE_DEVICES= before the command to see them on the CPU" if on_one_gpu else "use --nproc 2"
        left_out["others"] = f"they need 2 processes or more, on a GPU each where there are any: {more}"
    for name in strategies.STRATEGIES if nproc > 1 else ("single",):
        try:
            layout = strategies.layout_of(name, nproc)
            works.append(resolve(replace(config, layout=layout, strategy=None, nproc=None)))
        except LayoutError as error:
            left_out[name] = str(error)
    if not works:
        raise LayoutError("; ".join(f"{name} left out: {reason}" for name, reason in left_out.items()))
    return works, left_out


def visit(rank: Rank, progress: Progress, runs: list[TourConfig], group: str, out: str, flags: str) -> None:
    """Measure each run in turn on this rank; rank 0 prints and writes its row."""
    table = Table()
    references = References()
    for run in runs:
        work = resolve(run)
        asked = Asked(
            strategy=work.strategy,
            nproc=work.layout.world_size,
            precision=run.precision,
            group=group,
            command=f"paralab run --layout {work.layout} {flags}".strip(),
        )
        progress.step = None

        def on_first(failure: Failure, work: Work = work, asked: Asked = asked) -> None:
            append(out, failed(work, asked, rank, failure))

        with guard(rank, progress, on_first):
            mesh = cluster.make_mesh(work.layout, rank.device)
            if rank.rank < work.layout.world_size:
                if rank.is_main:
                    table.running(work.strategy)
                threads = torch.get_num_threads()
                if work.layout.world_size == 1 and not run.threads:
                    torch.set_num_threads(cluster.default_threads(1))  # the others are waiting
                want = references.get(parity.judged(work), mesh)
                log = StepLog(log_path(out, asked.run_id, rank.rank))
                record = run_case(work, asked=asked, rank=rank, mesh=mesh, want=want, log=log, progress=progress)
                torch.set_num_threads(threads)
                if rank.is_main:
                    append(out, record)
                    table.row(record)
            if dist.is_initialized():
                dist.barrier()


def _mib(size_bytes: float | None, digits: int) -> str:
    return "" if size_bytes is None else f"{size_bytes / 2**20:,.{digits}f}"


class Table:
    """The growing table of a tour: a row when a strategy is done."""

    COLUMNS: tuple[tuple[str, int, Callable[[RunRecord], str]], ...] = (
        ("strategy", 9, lambda r: r.strategy or ""),
        ("layout", 16, lambda r: r.layout or ""),
        ("loss", 17, lambda r: f"{r.loss_first:.3f} -> {r.loss_last:.3f}"),
        ("parity", 17, lambda r: "passed" if r.parity else "FAILED"),
        ("tokens/s", 9, lambda r: f"{r.tokens_per_s or r.samples_per_s:,.0f}"),
        ("MiB/rank", 9, lambda r: _mib(r.memory_tensors_peak_bytes, 0)),
        ("state MiB", 9, lambda r: _mib(r.memory_state_peak_bytes, 1)),
        ("predicted", 9, lambda r: _mib(r.predicted_state_bytes, 1)),
        ("sent MiB", 9, lambda r: _mib(sent_bytes(r), 1)),
    )

    def header(self) -> None:
        print("  ".join(f"{name:<{width}}" for name, width, _ in self.COLUMNS))
        self.rule()

    def rule(self) -> None:
        print("-" * (sum(width for _, width, _ in self.COLUMNS) + 2 * len(self.COLUMNS) - 2), flush=True)

    def running(self, name: str) -> None:
        if sys.stdout.isatty():
            print(f"{name} ...\r", end="", flush=True)

    def row(self, record: RunRecord) -> None:
        print("  ".join(f"{cell(record):<{width}}" for _, width, cell in self.COLUMNS), flush=True)


def sent_bytes(record: RunRecord) -> float:
    """Return what one rank sends in a step over all axes."""
    axes = ("dp", "tp", "pp", "world")
    return sum(getattr(record, f"comm_{axis}_wire_bytes") or 0.0 for axis in axes)


def _heading(work: Work, nproc: int) -> str:
    one, several = ("GPU", "GPUs") if torch.cuda.is_available() else ("process on a CPU", "processes on a CPU")
    return (
        f"{work.spec.name} {work.size}: {work.n_parameters / 1e6:.1f} M parameters, "
        f"{work.division.global_batch_size} samples a step, {work.run.precision}, "
        f"{nproc} {several if nproc > 1 else one}\n"
    )


def _verdict(records: list[RunRecord]) -> str:
    good = [r for r in records if r.status == "ok" and r.parity]
    worst = max((r.loss_difference_max or 0.0 for r in records), default=0.0)
    norm = max((r.grad_norm_difference_max or 0.0 for r in records), default=0.0)
    return (
        f"{len(good)} of {len(records)} strategies compute what one process computes: "
        f"losses within {worst:.0e}, gradient norms within {norm:.0e}, every parameter compared"
    )
