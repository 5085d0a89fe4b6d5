"""Measure how much the measuring itself slows training.

    paralab overhead --size nano --strategy ddp --nproc 2

The model is trained in one run. Intervals of steps that are measured as in paralab run (the time of every step, with
utilisation and power sampled alongside) alternate with intervals of bare steps, which come first in every other pair.
Each pair gives one ratio, so that other load on the machine affects both of its halves. The CPU time of the sampler is
printed as well; other load hardly changes it.
"""

import statistics
from dataclasses import dataclass
from typing import NamedTuple

from paralab.console.quantities import time_text
from paralab.errors import ConfigError
from paralab.options import heading
from paralab.options.config import RunConfig, changed
from paralab.options.flags import resolve as read_config
from paralab.options.option import STEPS, option

LIMIT = 1.01


class Pair(NamedTuple):
    """Two stretches of steps on one rank."""

    measured_s: float
    bare_s: float
    sampler_share: float | None  # processor time of the sampler over the time of the first; None where none ran


@dataclass(frozen=True, kw_only=True)
class OverheadConfig(RunConfig):
    """A case, and how often it is taken with measuring and without."""

    steps: int = changed("steps", 20, help="Number of optimizer steps in each half of a pair")
    out: str | None = changed("out", None, help="Not used: the result is printed", unset="not used")
    pairs: int = option(
        20, "Number of pairs: --steps steps with measuring and --steps steps without", group=STEPS, at_least=6
    )
    layer_stats_every: int | None = option(
        None,
        "Measure instead what --layer-stats-every N of paralab train costs: root mean squares in every N-th step",
        group=STEPS,
        at_least=1,
        unset="off",
    )


def main(argv: list[str]) -> int:
    """Print the ratio of step times. Returns: 1 when measuring certainly costs more than 1%."""
    config = read_config(argv, config=OverheadConfig, prog="paralab overhead", description=__doc__)
    check(config)
    pairs = f"{config.pairs} pairs of {config.steps} steps"
    heading.show(f"overhead of {heading.model_of(config)}: {heading.joined(heading.division_of(config), pairs)}")
    from paralab.planning.requested_layout import with_processes_of
    from paralab.planning.resolve import resolve
    from paralab.processes.rank import Rank
    from paralab.records.requested import Requested
    from paralab.running import task

    rank = Rank.from_env()
    work = resolve(with_processes_of(config, rank))
    task.check(work, "train")
    nproc, requested = work.layout.world_size, Requested.of(config, rank)
    taken = task.start("paralab.benchmarks.stretches:alternate", work.run, requested, nproc=nproc, config=config)
    if not rank.is_main:
        return 0
    text, status = verdict(taken, steps=config.steps)
    print(f"{work.spec.name} {work.size}, {work.strategy} as {work.layout}, {work.run.precision}\n{text}")
    return status


def check(config: OverheadConfig) -> None:
    """Refuse an option without use. Raises: ConfigError."""
    if config.out is not None:
        raise ConfigError("--out of paralab overhead has no use (the result is printed): leave it out")
    every = config.layer_stats_every
    if every is not None and config.steps % every:
        raise ConfigError(
            f"--layer-stats-every {every} with --steps {config.steps}: a half of a pair has to measure every "
            f"{every}th step, use --steps {-(-config.steps // every) * every}"
        )
    if every is not None and config.engine not in ("auto", "torch"):
        raise ConfigError(f"--layer-stats-every with --engine {config.engine}: use --engine torch")


def verdict(pairs: list[Pair], *, steps: int) -> tuple[str, int]:
    """Return what the pairs say about the limit, and the exit status."""
    from paralab.benchmarks.report.stats import median_interval

    ratios = [pair.measured_s / pair.bare_s for pair in pairs]
    ratio, (low, high) = statistics.median(ratios), median_interval(ratios)
    if high <= LIMIT:
        says = "at most 1%"
    else:
        says = "more than 1%" if low > LIMIT else "not enough evidence for 1%: give more --pairs or --steps"
    measured_s, bare_s = (statistics.median(column) for column in list(zip(*pairs, strict=True))[:2])
    shares = [pair.sampler_share for pair in pairs if pair.sampler_share is not None]
    took = f"\n  the sampler took {statistics.median(shares):.2%} of a core" if shares else ""
    with_it, bare = (time_text(time_s / steps, digits=4) for time_s in (measured_s, bare_s))
    return (
        f"  step {with_it} measured, {bare} bare; {len(pairs)} pairs of {steps}\n"
        f"  ratio {ratio:.4f}, 95% interval {low:.4f} to {high:.4f}: {says}{took}"
    ), int(low > LIMIT)
