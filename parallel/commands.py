"""`paralab tour` and `paralab verify` up to their first line: their options, read before anything imports torch."""

from dataclasses import dataclass

from parallel.errors import ConfigError
from parallel.options import heading
from parallel.options.config import RunConfig, option
from parallel.options.config import resolve as read_config

_TOUR = """Train one model under every strategy that fits this machine, side by side: `paralab tour`.

All strategies run one after the other in the same processes, so that the table costs one start-up.
"""
_VERIFY = """Prove that strategies compute what one process computes: `paralab verify --model gpt2 --nproc 4`.

For each strategy, schedule and accumulation: a few optimizer steps on the same weights, data and seed as one
process, then the largest difference of loss, global gradient norm and every parameter against a tolerance.
"""


@dataclass(frozen=True, kw_only=True)
class TourConfig(RunConfig):
    """What all strategies of a tour share."""

    steps: int = option(8, "optimizer steps, warm-up not counted", group="steps", at_least=1)
    warmup: int = option(2, "steps run first and left out of the timing", group="steps", at_least=0)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RunConfig):
    """What to prove. Without --strategy or --layout: every strategy, schedule and accumulation that fits."""

    precision: str | None = option(  # type: ignore[assignment]
        None,
        "fp64 for models with kinks (a ReLU at zero flips with the last bit), else fp32",
        group="memory and speed",
        choices=("fp32", "bf16", "fp16", "fp64"),
    )


def tour(argv: list[str]) -> int:
    """Run the tour. Returns: the exit status."""
    config = read_config(argv, config=TourConfig, prog="paralab tour", description=_TOUR)
    if config.strategy is not None or config.layout is not None:
        raise ConfigError("paralab tour runs every strategy: use paralab run for one, or leave it out")
    heading.show(f"a tour of {heading.model_of(config)}: {heading.division_of(config, strategies='every strategy')}")
    from parallel.tour import run

    return run(config)


def verify(argv: list[str]) -> int:
    """Print a table of certificates. Returns: the exit status."""
    config = read_config(argv, config=VerifyConfig, prog="paralab verify", description=_VERIFY)
    model = heading.model_of(config, size="in its smallest size")
    heading.show(f"verifying {model}: {heading.division_of(config, strategies='every strategy')}")
    from parallel.verify import run

    return run(config)
