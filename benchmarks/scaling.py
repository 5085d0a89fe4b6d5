"""Measure what more nodes bring at several link speeds, in a simulated cluster on this machine.

    paralab scale --nodes 1,2,3 --bandwidths 1gbit,20mbit --cores-per-node 0.6

Each case is `paralab cluster ... -- run ...`: the same global batch on 1, 2 and 3 nodes (strong scaling), each node
with the same share of the CPU, repeats interleaved. Next to each measured step time stands a predicted one: the compute
time divided by the number of nodes, plus a ring all-reduce of the gradients over the link, with nothing overlapped.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from statistics import mean, median
from typing import NamedTuple

from paralab.benchmarks.run import CaseConfig
from paralab.benchmarks.sweep.progress import progress
from paralab.console.quantities import size_text, time_text
from paralab.errors import ConfigError, RankError, UsageError
from paralab.nodes.simulated_node import bits_per_s
from paralab.options.config import changed
from paralab.options.flags import flags_of
from paralab.options.flags import resolve as read_config
from paralab.options.option import option
from paralab.processes.allowed import cores_allowed
from paralab.processes.with_parent import run_whole
from paralab.records.of_axes import sent_bytes
from paralab.records.reading import read
from paralab.records.row import RunRecord

DEFAULT_OUT = "runs/scale.csv"
CLUSTER = "simulated cluster"  # the title of the group of options


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(CaseConfig):
    """The case, and the clusters it is run on. Every other option is that of the case."""

    model: str = changed("model", "resnet")
    out: str | None = changed("out", None, unset=DEFAULT_OUT)
    nodes: list[int] | None = option(
        None,
        "Numbers of nodes to compare; each node runs one process",
        group=CLUSTER,
        at_least=1,
        metavar="N,M,...",
        unset="1,2,3",
    )
    bandwidths: list[str] | None = option(
        None, "Bandwidths of the link of each node to compare", group=CLUSTER, metavar="A,B,...", unset="1gbit,20mbit"
    )
    cores_per_node: float | None = option(
        None,
        "CPU cores that each node may use, as a quota, which may be a fraction",
        group=CLUSTER,
        above=0,
        unset="the cores of this machine, divided by the largest number of nodes",
    )
    repeats: int = option(3, "Number of runs of each case, interleaved", group=CLUSTER, at_least=1)
    time_limit_s: int = option(600, "Seconds that one run may take before it is ended", group=CLUSTER, at_least=1)


def main(argv: list[str]) -> int:
    """Run every case and print the table. Returns: 0.

    Raises: ConfigError for an option that the command chooses itself; UsageError where the nodes would share cores.
    """
    config = read_config(argv, config=ScaleConfig, prog="paralab scale", description=__doc__)
    clusters = clusters_of(config)
    out, group = config.out or DEFAULT_OUT, f"scale-{time.strftime('%Y%m%d-%H%M%S')}"
    runs = list(product(range(config.repeats), clusters.bandwidths, clusters.nodes))
    with progress(len(runs), "scale") as bar:
        for repeat, bandwidth, nodes in runs:
            case = replace(case_on(nodes, config), out=out, group=group, repeat=repeat)
            run_on(case, nodes, bandwidth, clusters.cores_per_node, config.time_limit_s)
            bar.advance(f"repeat {repeat + 1}: {nodes} nodes at {bandwidth}")
    records = [record for record in read(out) if record.group == group]
    print(table(records, clusters.bandwidths, clusters.cores_per_node))
    print(f"\nrows in {out}; read: paralab report {out}")
    return 0


class Clusters(NamedTuple):
    """The clusters to simulate: each number of nodes at each bandwidth."""

    nodes: list[int]
    bandwidths: list[str]
    cores_per_node: float


def clusters_of(config: ScaleConfig) -> Clusters:
    """Return the clusters that are requested, or chosen. Raises: UsageError for what cannot be simulated here."""
    counts = config.nodes or [1, 2, 3]
    bandwidths = config.bandwidths or ["1gbit", "20mbit"]
    for bandwidth in bandwidths:
        bits_per_s(bandwidth)  # refuses what is none
    for name in ("layout", "nproc", "group", "repeat"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"--{name} of paralab scale: it chooses that itself, leave it out (see --nodes, --strategy)"
            )
    cores = config.cores_per_node or cores_allowed() / max(counts)
    if cores * max(counts) > cores_allowed():
        needed = f"{cores:g} x {max(counts)}"
        raise UsageError(
            f"--cores-per-node {needed} nodes, {cores_allowed():g} cores here: nodes would share, use less"
        )
    return Clusters(counts, bandwidths, cores)


def case_on(nodes: int, config: ScaleConfig) -> CaseConfig:
    """Return what each node of a cluster of this size takes part in."""
    case = CaseConfig(**{f.name: getattr(config, f.name) for f in fields(CaseConfig)})
    strategy = "single" if nodes == 1 else case.strategy or "ddp"
    return replace(case, strategy=strategy, threads=case.threads or 1)


def run_on(case: CaseConfig, nodes: int, bandwidth: str, cores: float, limit_s: int) -> None:
    """Run a case on a simulated cluster, whose row goes to the file of the case. cores: of each node.

    Raises: RankError for a run that fails, or takes longer than limit_s seconds.
    """
    nodes_shape = ["--nodes", str(nodes), "--bandwidth", bandwidth, "--cores-per-node", str(cores)]
    words = ["cluster", *nodes_shape, "--", "run", *flags_of(case)]
    command = [sys.executable, "-m", "paralab.cli", *words]
    typed = shlex.join(["paralab", *words])
    try:
        done = run_whole(command, limit_s=limit_s)
    except subprocess.TimeoutExpired:
        raise RankError(f"{typed} took longer than --time-limit-s {limit_s}: give it more, or fewer --steps") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "paralab: error" in line), done.stderr[-300:])
        raise RankError(f"{typed} ended with status {done.returncode}: {said}")


def table(records: Sequence[RunRecord], bandwidths: Sequence[str], cores: float) -> str:
    """Return measured and predicted steps by link and number of nodes; the GPU's columns are empty on a CPU."""
    first = records[0]
    lines = [
        f"{first.model} {first.size}, {first.global_batch_size} samples a step in all, {first.precision}, "
        f"{cores:.2g} cores a node ({first.cpu_model})",
        f"{'link':>8}{'nodes':>6}{'runs':>5}{'step':>9}{'formula':>10}{'samples/s':>11}{'speed-up':>9}"
        f"{'efficiency':>11}{'sent':>10}{'waiting':>8}{'CPU':>6}{'GPU':>5}",
    ]
    for bandwidth in bandwidths:
        runs = [r for r in records if r.link_mbit_per_s == bits_per_s(bandwidth) / 1e6 and r.status == "ok"]
        alone_s = median(_step_s(r) for r in runs if r.world_size == 1)
        for nodes in sorted({r.world_size for r in runs if r.world_size}):
            mine = [r for r in runs if r.world_size == nodes]
            step_s = median(map(_step_s, mine))
            sent = sent_bytes(mine[0]) or 0.0
            formula_s = alone_s / nodes + 8 * sent / bits_per_s(bandwidth)
            rate = median(float(r.samples_per_s or 0) for r in mine)
            waiting = [r.exposed_comm_share for r in mine if r.exposed_comm_share is not None]
            busy = mean(float(r.cpu_utilisation_mean_share or 0) for r in mine)
            gpu = [r.gpu_utilisation_mean_share for r in mine if r.gpu_utilisation_mean_share is not None]
            lines.append(
                f"{bandwidth:>8}{nodes:>6}{len(mine):>5}{time_text(step_s):>9}{time_text(formula_s):>10}{rate:>11,.1f}"
                f"{alone_s / step_s:>8.2f}x{alone_s / step_s / nodes:>11.0%}{size_text(sent):>10}"
                f"{f'{median(waiting):.0%}' if waiting else '':>8}{busy:>6.0%}{f'{mean(gpu):.0%}' if gpu else '':>5}"
            )
        lines.append(_crossover(runs, alone_s))
    if first.device == "cpu":
        lines.append("GPU: empty, there is none on this machine")
    return "\n".join(lines)


def _crossover(runs: Sequence[RunRecord], alone_s: float) -> str:
    """Say at which link speed more nodes stop helping.

    A rank sends S (n-1)/n bytes, under ddp with S twice the gradients, so a step takes S/b + (C - S/b)/n at b bytes/s
    and C seconds of computing: whether one more node helps does not depend on n, only on whether b is above S/C.
    """
    largest = max(runs, key=lambda r: r.world_size or 0)
    nodes = largest.world_size or 1
    all_bytes = (sent_bytes(largest) or 0.0) * nodes / max(nodes - 1, 1)  # S
    return f"{'':>8} by the formula more nodes help on links faster than {all_bytes / alone_s * 8 / 1e6:,.0f} Mbit/s"


def _step_s(record: RunRecord) -> float:
    return float(record.step_time_p50_s or 0)
