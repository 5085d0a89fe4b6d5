"""The methods that are compared, and what all of them train."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from paralab.benchmarks.sends_less.gap import BASELINE
from paralab.errors import ConfigError
from paralab.layout import Layout
from paralab.nodes.simulated_node import bits_per_s
from paralab.options.choices import LrSchedule
from paralab.options.config import RunConfig, changed
from paralab.options.option import STEPS, option
from paralab.planning.resolve import resolve

NODES = 2
PERIOD = 8  # steps that ranks train apart for in local8 and diloco8
METHODS: Mapping[str, Mapping[str, Any]] = {
    BASELINE: {},
    "bf16": {"grad_compression": "bf16"},
    "int8": {"grad_compression": "int8"},
    "powersgd": {"grad_compression": "powersgd"},
    f"local{PERIOD}": {"layout": Layout.parse(f"dp{NODES}/local{PERIOD}")},
    f"diloco{PERIOD}": {"layout": Layout.parse(f"dp{NODES}/local{PERIOD}"), "outer_optimizer": "nesterov"},
    f"streaming{PERIOD}": {
        "layout": Layout.parse(f"dp{NODES}/local{PERIOD}"),
        "outer_optimizer": "nesterov",
        "outer_fragments": 2,
    },
    f"overlap{PERIOD}": {
        "layout": Layout.parse(f"dp{NODES}/local{PERIOD}"),
        "outer_optimizer": "nesterov",
        "outer_fragments": 2,
        "outer_overlap": 2,
    },
}


@dataclass(frozen=True, kw_only=True)
class SendsLessConfig(RunConfig):
    """What all methods train, and where they are timed."""

    size: str | None = changed("size", "2x96x4v257")
    seq_len: int | None = changed("seq_len", 64)
    global_batch_size: int | None = changed("global_batch_size", 16)
    steps: int = changed("steps", 240, help="Number of optimizer steps of each training; a multiple of 8")
    learning_rate: float = changed("learning_rate", 3e-3)
    lr_schedule: LrSchedule = changed("lr_schedule", "constant")
    lr_warmup_steps: int = changed("lr_warmup_steps", 24)
    threads: int | None = changed("threads", 1)
    out: str | None = changed(
        "out", "runs/sends-less", help="Folder of the measurement: losses.csv, times.csv, gap.svg"
    )
    methods: list[str] | None = option(
        None,
        f"Methods to compare with {BASELINE}",
        group=STEPS,
        choices=tuple(METHODS),
        metavar="NAME,NAME",
        unset="all",
    )
    seeds: int = option(3, "Number of seeds to train each method from", group=STEPS, at_least=1)
    eval_every: int = option(24, "Evaluate every this many steps; a multiple of 8", group=STEPS, at_least=PERIOD)
    bandwidths: list[str] | None = option(
        None, "Bandwidths of the link of each node", group=STEPS, metavar="A,B,...", unset="10mbit,100mbit"
    )
    rounds: int = option(5, "Number of turns in which each method is timed, of 8 steps each", group=STEPS, at_least=1)
    read_only: bool = option(False, "Run nothing: print and draw what is in the folder", group=STEPS)

    @property
    def chosen(self) -> list[str]:
        """The methods, the baseline first."""
        return [name for name in METHODS if name in {BASELINE, *(self.methods or METHODS)}]

    @property
    def folder(self) -> Path:
        return Path(self.out or "")


def run_of(config: SendsLessConfig, method: str, seed: int = 0) -> RunConfig:
    """Return the training of one method from one seed."""
    shared = {f.name: getattr(config, f.name) for f in fields(RunConfig)}
    return replace(RunConfig(**shared), **{"layout": Layout(dp=NODES), "seed": seed, "out": None, **METHODS[method]})


def check(config: SendsLessConfig, links: list[str]) -> None:
    """Raise UsageError for what cannot be measured."""
    for name in ("strategy", "layout", "nproc", "grad_compression"):
        if getattr(config, name) != RunConfig.__dataclass_fields__[name].default:
            raise ConfigError(f"--{name.replace('_', '-')}: this command chooses that itself, use --methods")
    for name in ("steps", "eval_every"):
        if getattr(config, name) % PERIOD:
            nearest = -(-getattr(config, name) // PERIOD) * PERIOD
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: ranks that train apart are evaluated where they "
                f"meet, every {PERIOD} steps: use {nearest}"
            )
    for link in links:
        bits_per_s(link)
    for method in config.chosen:
        resolve(run_of(config, method))
