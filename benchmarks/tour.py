"""Train one model under every strategy that fits this machine, and compare them in one table.

    paralab tour --model gpt2 --nproc 4

The strategies run one after the other in the same processes, so that processes start only once.
"""

from dataclasses import dataclass

from paralab.errors import ConfigError
from paralab.options import heading
from paralab.options.config import RunConfig, changed
from paralab.options.flags import resolve as read_config
from paralab.processes.allowed import check_processes_fit


@dataclass(frozen=True, kw_only=True)
class TourConfig(RunConfig):
    """What all strategies of a tour share."""

    steps: int = changed("steps", 8)
    warmup: int = changed("warmup", 2)
    out: str | None = changed("out", None, unset="runs/tour.csv")


def main(argv: list[str]) -> int:
    """Run the tour. Returns: the exit status.

    Raises: ConfigError where a single strategy or layout is requested.
    """
    config = read_config(argv, config=TourConfig, prog="paralab tour", description=__doc__)
    check(config)
    heading.show(f"a tour of {heading.model_of(config)}: {heading.division_of(config, strategies='every strategy')}")
    from paralab.benchmarks.tour_worker import run

    return run(config)


def check(config: TourConfig) -> None:
    """Refuse options that a tour decides itself. Raises: ConfigError."""
    if config.strategy is not None or config.layout is not None:
        raise ConfigError("paralab tour runs every strategy: use paralab run for one, or leave it out")
    if config.nproc is not None:
        check_processes_fit(config.nproc)
