"""Measure this device, so that `paralab plan` and `paralab predict` know it: `--gpu device.json`.

    paralab calibrate --seconds 20 --out device.json

Computing: matrix products, attention, convolutions and operations that move bytes, in several sizes, with as many
threads as each of one or more processes has, and what it takes to start an operation. They are measured in several
turns, so that a moment in which the machine was busy spoils none.

Communication: all-reduces of 1 KiB to 16 MiB over 2 processes and more, each after some work, and messages between two.

Software: what DistributedDataParallel, FSDP, DTensor and the stages of a pipeline add on the host.

It needs a machine that does nothing else: it waits for that for up to 20 seconds, and says where other programs were
busy all the same.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from paralab.console.clock import Moment
from paralab.console.outputs import check_writable, write_whole
from paralab.console.phases import Phases
from paralab.console.quantities import size_text, time_text
from paralab.errors import ConfigError
from paralab.options.arguments import Parser, positive, whole

_LEAST_S, _MOST_S = 1.0, 600.0
_MOST_PROCESSES = 16
_WAITS_S = 20.0
_TURNS = 6  # of each number of threads
_DISTURBED = 0.15  # cores that others took, from which on a line says so


def main(argv: Sequence[str]) -> int:
    """Measure this device, print a table of it, and write the file. Returns: 0.

    Raises: ConfigError for numbers that cannot be.
    """
    options = _parser().parse_args(list(argv))
    if not _LEAST_S <= options.seconds <= _MOST_S:
        raise ConfigError(f"--seconds {options.seconds:g}: give {_LEAST_S:g} to {_MOST_S:g}")
    check_writable(Path(options.out))
    from paralab.planning.measured import device as measured
    from paralab.processes.rank import Rank
    from paralab.running import task

    ranks = options.processes or default_processes()
    Rank.from_env().check_gpus(ranks)
    began = Moment.now()
    task.announce(ranks, Phases(began))
    found = task.start("paralab.commands.calibrate:measure", began, options.seconds, nproc=ranks)
    write_whole(Path(options.out), measured.write(found))
    print("\n".join(table(found)))
    if found.others_cores is not None and found.others_cores > _DISTURBED:
        took = f"other programs took {found.others_cores:.1f} cores meanwhile"
        print(f"paralab: {took}: measure again when they do nothing", file=sys.stderr)
    print(f"in {options.out}, for paralab plan and predict: --gpu {shlex.quote(options.out)}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="paralab calibrate", description=__doc__)
    parser.add_argument(
        "--out", metavar="FILE.json", default="device.json", help="File to write (default: device.json)"
    )
    parser.add_argument(
        "--seconds", metavar="X", type=positive, default=20.0, help="Seconds to measure for (default: 20)"
    )
    parser.add_argument(
        "--processes",
        metavar="N",
        type=whole(1, _MOST_PROCESSES),
        help="Most processes to measure links between (default: 4, or the GPUs)",
    )
    return parser


def default_processes() -> int:
    """Return up to how many ranks are measured."""
    from paralab.planning.requested_layout import machine_processes

    return min(machine_processes(), _MOST_PROCESSES)


def measure(rank: Any, progress: Any, began: Moment, seconds: float) -> Any:
    """Measure on this rank; rank 0 returns the device. Collective over all ranks."""
    import torch

    from paralab.measure.load import Load, wait_for_quiet
    from paralab.planning.measured.device import MeasuredDevice
    from paralab.processes.allowed import cores_allowed

    started = time.monotonic()
    cores = max(1, int(cores_allowed()))
    with Phases(began, shown=rank.is_main) as phases:
        phases.begin("waiting until other programs leave the processors alone")
        wait_for_quiet(at_most_s=min(seconds, _WAITS_S))
        load = Load()
        every = _threads(cores, rank.world_size) if rank.device.type == "cpu" else [1]
        each_s = seconds * (0.75 if rank.world_size > 1 else 1.0) / len(every)
        rates = _in_turns(rank, every, cores, each_s, phases)
        all_reduces, messages = _links(rank, seconds - each_s * len(every), phases)
        software = _software(rank, cores, phases)
        others = load.others()
    return MeasuredDevice(
        name=_name(rank),
        kind=rank.device.type,
        cores=cores,
        memory_gib=round(_memory_bytes(rank) / 2**30, 3),
        torch=torch.__version__,
        date=date.today().isoformat(),
        measured_s=round(time.monotonic() - started, 1),
        others_cores=None if others is None else round(others, 2),
        rates=tuple(rates),
        all_reduces=tuple(all_reduces),
        messages=tuple(messages),
        software=software,
    )


def _threads(cores: int, ranks: int) -> list[int]:
    """Return the numbers of threads that so many processes or fewer have on these cores."""
    return sorted({max(1, cores // n) for n in range(1, ranks + 1)})


def _in_turns(rank: Any, every: list[int], cores: int, each_s: float, phases: Phases) -> list[Any]:
    """Measure with each number of threads in turn, on as many ranks as then fill the cores; the others wait.

    each_s: for a number of threads, in all turns together.
    """
    import torch
    import torch.distributed as dist

    from paralab.axes.precision import DTYPES
    from paralab.measure import calibration

    cpu = rank.device.type == "cpu"
    working = {n: min(rank.world_size, max(1, cores // n)) if cpu else rank.world_size for n in every}
    dtypes = {DTYPES["fp32"]: 0.75, DTYPES["bf16"]: 0.2}
    mine = [n for n in every if rank.rank < working[n]]
    turns = {n: calibration.Turns(rank.device, dtypes, budget_s=each_s / 25_000) for n in mine}
    found, was = [], torch.get_num_threads()
    threads = f" with {' and '.join(map(str, every))} thread{'s' * (every != [1])}" if cpu else ""
    phases.begin(f"operations{threads}, in {_TURNS} turns", total=_TURNS * len(every))
    for number in range(_TURNS):
        for n in every:
            if n in turns:
                torch.set_num_threads(n if cpu else was)
                turns[n].take(each_s / _TURNS)
                found += [turns[n].rates(working[n])] if number == _TURNS - 1 else []
            if rank.world_size > 1:
                dist.barrier()
            phases.advance()
    torch.set_num_threads(was)
    return found


def _links(rank: Any, seconds: float, phases: Phases) -> tuple[list[Any], list[Any]]:
    """Measure all-reduces over 2, 4, ... and all ranks, and messages between the first two."""
    import torch.distributed as dist

    from paralab.measure import calibration

    if rank.world_size == 1:
        return [], []
    counts = sorted({*_powers(rank.world_size), rank.world_size})
    all_reduces, messages = [], []
    each_s = seconds / (len(counts) + 1)
    phases.begin("all-reduces and messages", total=len(counts))
    for n in counts:
        group = dist.new_group(list(range(n)))
        if rank.rank < n:
            all_reduces += calibration.all_reduces(group, rank.device, seconds=each_s)
            if n == 2:
                messages += calibration.messages(group, rank.device, seconds=each_s)
        dist.barrier()
        phases.advance()
    return all_reduces, messages


def _software(rank: Any, cores: int, phases: Phases) -> dict[str, float]:
    """Measure what software adds on the host, on as many ranks as have a core, where modules can be divided."""
    import torch.distributed as dist

    from paralab.axes.axis import Software
    from paralab.measure.software import software, stage_s
    from paralab.processes.pretend import FAKE

    if rank.world_size == 1:
        return {}
    phases.begin("what software adds to modules that are divided")
    group, pair = dist.new_group(backend=FAKE), dist.new_group([0, 1])
    found = software(rank.device, group) if rank.rank < cores else {}
    dist.barrier()
    if rank.rank < 2:
        found[Software.PIPELINE_STAGE] = stage_s(rank.device, pair)
    dist.barrier()
    return {str(name): round(seconds, 9) for name, seconds in found.items()}


def _powers(most: int) -> Iterator[int]:
    n = 2
    while n <= most:
        yield n
        n *= 2


def _name(rank: Any) -> str:
    import torch

    from paralab.records.environment import cpu_model

    return torch.cuda.get_device_name(rank.device) if rank.device.type == "cuda" else cpu_model() or "unknown"


def _memory_bytes(rank: Any) -> int:
    import torch

    from paralab.processes.allowed import memory_allowed_bytes

    if rank.device.type == "cuda":
        return torch.cuda.get_device_properties(rank.device).total_memory
    return memory_allowed_bytes()


def table(device: Any) -> Iterator[str]:
    """Yield the lines of a table of what was measured, 80 columns wide."""
    yield f"{device.name}, {device.cores} cores, {device.memory_gib:.1f} GiB, torch {device.torch}"
    yield f"{'threads':>7} {'processes':>9}  {'measured':32} {'most':>9}"
    for rates in device.rates:
        for name, unit, number in figures(rates):
            yield f"{rates.threads:>7} {rates.processes:>9}  {name:32} {number:>9,.1f} {unit}"
    for sent in device.all_reduces:
        yield f"{'':7} {sent.ranks:>9}  {f'all-reduce of {size_text(sent.bytes)}':32} {time_text(sent.seconds):>12}"
    for what, seconds in device.software.items():
        yield f"{'':7} {'':>9}  {f'software: {what}':32} {time_text(seconds):>12}"
    for sent in device.messages:
        yield f"{'':7} {sent.ranks:>9}  {f'message of {size_text(sent.bytes)}':32} {time_text(sent.seconds):>12}"


def figures(rates: Any) -> Iterator[tuple[str, str, float]]:
    """Yield (what, unit, number) of the figures that stand for a device."""
    for kind in ("product", "convolution", "attention"):
        for dtype in ("float32", "bfloat16"):
            if samples := rates.operations.get(f"{kind} {dtype}"):
                yield f"{kind}, {dtype}", "GFLOP/s", max(s.flops / s.seconds for s in samples) / 1e9
    for kind, what in (("add", "eager addition"), ("gelu", "eager GELU"), ("native_layer_norm", "fused layer norm")):
        if samples := rates.operations.get(f"{kind} float32"):
            largest = max(samples, key=lambda s: s.bytes)
            yield f"{what}, {size_text(largest.bytes)}", "GB/s", largest.bytes / largest.seconds / 1e9
    yield "starting an operation, forward", "us", rates.forward_s * 1e6
    yield "starting an operation, backward", "us", rates.backward_s * 1e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
