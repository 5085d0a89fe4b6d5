"""What a sweep takes beside the options of its cases, and what of it goes together."""

from dataclasses import dataclass, fields
from typing import get_args

from paralab.benchmarks.report.choices import LAST
from paralab.benchmarks.run import PERCENT, CaseConfig, percent_of
from paralab.benchmarks.sweep import variations
from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.layout.strategies import ALIASES, STRATEGIES
from paralab.options.choices import EngineChoice
from paralab.options.config import changed
from paralab.options.option import option

DEFAULT_OUT = "runs/bench.csv"
MOST_REPEATS = 40  # with --until-decided
SWEEP = "sweep"  # the title of the group of options


@dataclass(frozen=True, kw_only=True)
class SweepConfig(CaseConfig):
    """What to sweep; every other option is shared by all cases. Lists are joined by commas."""

    out: str | None = changed("out", None, unset=DEFAULT_OUT)
    strategies: list[str] | None = option(
        None,
        "Strategies to compare",
        group=SWEEP,
        choices=tuple(STRATEGIES),
        aliases=ALIASES,
        metavar="A,B,...",
        unset="every strategy that fits",
    )
    layouts: list[Layout] | None = option(
        None, "Layouts to compare, in place of strategies", group=SWEEP, metavar="A,B,...", unset="none"
    )
    engines: list[str] | None = option(
        None,
        "Engines to run each strategy on",
        group=SWEEP,
        choices=get_args(EngineChoice),
        metavar="A,B,...",
        unset="that of --engine",
    )
    models: list[str] | None = option(
        None,
        "Models to compare, with a size as in gpt2:nano or FILE.py:NAME:tiny",
        group=SWEEP,
        metavar="A,B,...",
        unset="that of --model and --size",
    )
    nprocs: list[int] | None = option(
        None,
        "Numbers of processes to compare",
        group=SWEEP,
        at_least=1,
        metavar="N,M,...",
        unset="that of --nproc",
    )
    global_batch_sizes: list[int] | None = option(
        None,
        "Global batch sizes to compare, in samples per optimizer step",
        group=SWEEP,
        at_least=1,
        metavar="N,M,...",
        unset="that of --global-batch-size",
    )
    vary: list[str] | None = option(
        None,
        f"Options to vary one at a time, each compared with the case as it is: {', '.join(variations.NAMES)}",
        group=SWEEP,
        choices=variations.NAMES,
        metavar="A,B,...",
        unset="none",
    )
    repeats: int = option(
        6,
        "Number of runs of each case, interleaved; a verdict needs at least 4, and 6 in pairs",
        group=SWEEP,
        at_least=1,
    )
    until_decided: str | None = option(
        None,
        "Go on beyond --repeats, interleaved, until each comparison is decided: faster, slower, or equivalent within "
        "this margin, such as 2%; a case that is decided is not run any more",
        group=SWEEP,
        pattern=PERCENT,
        metavar="PERCENT",
        unset="stop after --repeats",
    )
    max_repeats: int | None = option(
        None,
        "With --until-decided: the most runs of each case",
        group=SWEEP,
        at_least=1,
        at_most=LAST,
        unset=f"{MOST_REPEATS}",
    )
    max_time_s: int | None = option(
        None,
        "With --until-decided: seconds of the sweep after which no repeat beyond --repeats is begun",
        group=SWEEP,
        at_least=1,
        unset="no limit",
    )
    time_limit_s: int = option(
        600, "Seconds that one run may take, after which it is ended and counts as hung", group=SWEEP, at_least=1
    )


# option -> what it takes the place of
_LISTS = ("strategies", "layouts", "engines", "models", "nprocs", "global_batch_sizes")
_REPLACES = {
    "engines": ("engine",),
    "global_batch_sizes": ("global_batch_size",),
    "nprocs": ("nproc",),
    "models": ("model", "size"),
    "strategies": ("strategy",),
    "layouts": ("strategy", "layout", "strategies", "nproc", "nprocs"),
    "vary": _LISTS,
    "repeats": ("repeat",),
}


def check(config: SweepConfig) -> None:
    """Refuse options that would change nothing. Raises: ConfigError."""
    given = {f.name for f in fields(config) if getattr(config, f.name) != f.default} | {"repeats"}
    for single, several in (("strategy", "strategies"), ("layout", "layouts")):
        if single in given and "vary" not in given:
            raise ConfigError(f"--{single} of paralab bench is for --vary: use --{several}")
    _check_until_decided(config)
    for name, others in _REPLACES.items():
        for other in others:
            if name in given and other in given:
                flag, instead = (word.replace("_", "-") for word in (other, name))
                raise ConfigError(f"--{flag} beside --{instead}, which takes its place: leave one of them out")


def _check_until_decided(config: SweepConfig) -> None:
    percent = percent_of(config.until_decided)
    if percent is not None and not 0 < percent < 50:
        raise ConfigError(f"--until-decided {config.until_decided} is no margin: use a percentage such as 2%")
    for name in ("max_repeats", "max_time_s"):
        if percent is None and getattr(config, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is for --until-decided: leave it out, or give a margin as well")
    if percent is not None and most_repeats(config) < config.repeats:
        raise ConfigError(f"--max-repeats {most_repeats(config)} is less than --repeats {config.repeats}: use no less")


def most_repeats(config: SweepConfig) -> int:
    """Return how often a case is run at most where repeats go on until there is a verdict."""
    return config.max_repeats or MOST_REPEATS
