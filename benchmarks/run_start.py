"""What `paralab run` does before its processes and after them: check a case, start them, and print the row.

What measures is imported by the ranks alone.
"""

import sys
from dataclasses import replace

from paralab.benchmarks.report import to_loss
from paralab.benchmarks.report.slowest import parts_s, slowest, where
from paralab.benchmarks.report.work import amount
from paralab.benchmarks.run import CommandConfig, percent_of
from paralab.console.clock import Moment
from paralab.console.lines import paragraph
from paralab.console.outputs import check_outputs
from paralab.console.phases import Phases
from paralab.console.quantities import size_text
from paralab.errors import RankError
from paralab.planning.requested_layout import alone, with_processes_of
from paralab.planning.resolve import resolve
from paralab.processes.rank import Rank
from paralab.records.of_axes import sent_bytes
from paralab.records.proven import WHOLE
from paralab.records.requested import Requested
from paralab.records.row import RunRecord
from paralab.records.writing import check_appendable
from paralab.running import task


def run(config: CommandConfig, *, began: Moment) -> int:
    """Check a case, start its processes, print the row. began: the moment of the command. Returns the exit status."""
    rank = Rank.from_env()
    rule = percent_of(config.until_decided)
    requested = Requested.of(
        config, rank, group=config.group, repeat=config.repeat, until_decided_percent=rule, started=began
    )
    work = resolve(with_processes_of(config, rank))
    requested = replace(requested, command=work.command)
    if (told := alone(work, rank)) and rank.is_main:
        print(told, file=sys.stderr)
    task.check(work, "train")
    out, nproc = config.out or "runs/results.csv", work.layout.world_size
    check_appendable(out)
    if config.trace is not None:
        check_outputs({"--out": out, "--trace": config.trace}, make_folders=True)
    task.announce(nproc, Phases(began, shown=rank.launcher == "python"))
    try:
        record = task.start(
            "paralab.benchmarks.run_worker:measure",
            work.run,
            requested,
            out,
            nproc=nproc,
            config=config,
            failure_row=task.FailureRow(out, work, requested),
        )
    except RankError:
        if rank.launcher == "python":  # else this process has met others, and they are gone
            from paralab.benchmarks import out_of_memory  # with the engines, which only a failure needs here

            for line in out_of_memory.after(work.run, out, requested.run_id):
                print(f"paralab: {line}", file=sys.stderr, flush=True)
        raise
    if rank.is_main:
        print(summary(record, out))
        return 0 if record.parity is not False else 1
    return 0


def summary(record: RunRecord, out: str) -> str:
    """Return the row in a few lines for a person."""
    rate = record.tokens_per_s or record.samples_per_s
    unit = record.unit if record.tokens_per_s else "samples"
    share = f", {record.mfu:.0%} of" if record.mfu is not None else ", share unknown of"
    peak = f"{share} the peak ({record.peak_source})" if record.peak_source else ""
    step = amount(record.step_time_p50_s, "step_time_p50_s")
    parity = record.parity_result or "not requested"
    if record.parity is not None and record.parity_scope != WHOLE:
        parity += f", on {record.parity_scope}"
    return (
        f"{record.model} {record.size}, {record.strategy} as {record.layout}, {record.precision} on {record.device}\n"
        f"  loss {record.loss_first:.4f} -> {record.loss_last:.4f}   parity {parity}\n"
        f"{_line(f'{rate:,.0f} {unit}/s   step {step}{peak}')}\n"
        f"{_to_loss(record)}{_peak_and_sent(record)}{_slow_rank(record)}"
        f"  row {record.run_id} in {out}"
    )


def _to_loss(record: RunRecord) -> str:
    """Return the line about the loss that was to be reached, where one was."""
    said = to_loss.said("", [record]) if record.status == "ok" else []
    return "".join(f"  {line.removeprefix(': ')}\n" for line in said)


def _peak_and_sent(record: RunRecord) -> str:
    """Return the line about the fullest rank and the one that sends most."""
    sizes = (("peak", record.memory_tensors_peak_bytes), ("sent", sent_bytes(record)))
    known = [f"{name} {size_text(size) if size else '0 B'}" for name, size in sizes if size is not None]
    return f"  {'   '.join(known)} a step, of the rank with most\n" if known else ""


def _slow_rank(record: RunRecord) -> str:
    """Return the lines about where the time of several ranks goes, and about the one that the others wait for."""
    if record.slowest_rank is None:
        return ""
    parts, said = where(parts_s(record)), slowest(record)
    lines = [f"where the time of rank {record.slowest_rank} goes: {parts}" if parts else "", said]
    return "".join(f"{_line(line)}\n" for line in lines if line)


def _line(text: str) -> str:
    return paragraph(text, indent="  ", after="    ")
