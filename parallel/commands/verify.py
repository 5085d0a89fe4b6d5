"""Prove that strategies compute what one process computes.

    paralab verify --model gpt2 --nproc 4

Each strategy, pipeline schedule and accumulation takes a few optimizer steps, from the same weights, data and seed as
one process. The largest differences of the loss, of the global gradient norm and of every parameter are compared with
tolerances.
"""

from dataclasses import dataclass

from parallel.options import heading
from parallel.options.config import RunConfig, changed
from parallel.options.config import resolve as read_config


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RunConfig):
    """What to prove. Without --strategy or --layout: every strategy, schedule and accumulation that fits."""

    size: str | None = changed("size", None, unset="the smallest")
    strategy: str | None = changed("strategy", None, unset="every strategy that fits")
    precision: str | None = changed(  # type: ignore[assignment]
        "precision",
        None,
        unset="fp64 for models with kinks, where a ReLU near zero flips with the last bit; fp32 for others",
    )


def main(argv: list[str]) -> int:
    """Print a table of parity results. Returns: the exit status."""
    config = read_config(argv, config=VerifyConfig, prog="paralab verify", description=__doc__)
    model = heading.model_of(config, size="in its smallest size")
    heading.show(f"verifying {model}: {heading.division_of(config, strategies='every strategy')}")
    from parallel.commands.verify_cases import run

    return run(config)
