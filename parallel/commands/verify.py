"""Prove that strategies compute what one process computes.

    paralab verify --model gpt2 --nproc 4

Each strategy, pipeline schedule and accumulation takes a few optimizer steps, from the same weights, data and seed as
one process. The largest differences of the loss, of the global gradient norm and of every parameter are compared with
tolerances.
"""

from dataclasses import dataclass

from paralab.errors import ConfigError
from paralab.options import heading
from paralab.options.choices import Precision
from paralab.options.config import RunConfig, changed
from paralab.options.flags import read
from paralab.options.settings import Origin


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(RunConfig):
    """What to prove. Without --strategy or --layout: every strategy, schedule and accumulation that fits."""

    size: str | None = changed("size", None, unset="the smallest")
    steps: int = changed("steps", 20, help="Not used: each case takes three steps")
    warmup: int = changed("warmup", 3, help="Not used: nothing is timed")
    out: str | None = changed("out", None, help="Not used: the results are printed", unset="not used")
    strategy: str | None = changed("strategy", None, unset="every strategy that fits")
    precision: Precision | None = changed(  # type: ignore[assignment]
        "precision",
        None,
        unset="fp64 for models with kinks, where a ReLU near zero flips with the last bit; fp32 for others",
    )


def main(argv: list[str]) -> int:
    """Print a table of parity results. Returns: the exit status."""
    config, _ = requested(argv)
    model = heading.model_of(config, size="in its smallest size")
    heading.show(f"verifying {model}: {heading.division_of(config, strategies='every strategy')}")
    from paralab.commands.verify_cases import run

    return run(config)


def requested(argv: list[str]) -> tuple[VerifyConfig, dict[str, Origin]]:
    """Read what to prove, and where each given option came from. Raises: ConfigError for a flag without use."""
    config, origins = read(argv, config=VerifyConfig, prog="paralab verify", description=__doc__)
    for name in ("steps", "warmup", "out"):
        if origins.get(name) == Origin("flag"):
            raise ConfigError(f"--{name} of paralab verify has no use ({_help(name)}): leave it out")
    return config, origins


def _help(name: str) -> str:
    return VerifyConfig.__dataclass_fields__[name].metadata["help"].removeprefix("Not used: ")
