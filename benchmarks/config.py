"""Print every option of a command, with its value and where that came from. Nothing is run.

    paralab config run --model gpt2 --strategy zero3 --nproc 4
    paralab config train --preset alice --json

COMMAND is run, train, tour, verify, bench, scale, peers or overhead. Its options are read and checked as the command
does it, so what it would refuse is refused here too. A value comes from a flag, a file (--config), a preset, the run
that --resume continues, the weights of --init-from, or the launcher that started this process; paralab chooses it; or
it is the default. If a command runs several cases, all values that they have are listed.
"""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from paralab.errors import UsageError, did_you_mean
from paralab.options.arguments import Parser
from paralab.options.config import RunConfig
from paralab.options.flags import read
from paralab.options.settings import CHOSEN, DEFAULT, Origin, Setting, as_json, table

if TYPE_CHECKING:
    from paralab.planning.work import Work
    from paralab.processes.rank import Rank


@dataclass(frozen=True)
class Planned:
    """What a command will do. requested: its options. origins: of those that were given. cases: what will run."""

    requested: RunConfig
    origins: Mapping[str, Origin]
    cases: Sequence["Work"]
    decided: Mapping[str, Any] = field(default_factory=dict)  # by the command itself, for all of its cases


def main(argv: Sequence[str]) -> int:
    """Print the options of a command. Returns: 0."""
    options = _parse(argv)
    words = [word for word in options.words if word != "--json"]
    from paralab.processes.rank import Rank

    rank = Rank.from_env()
    settings = list(settings_of(COMMANDS[options.command](words, rank), rank))
    line = shlex.join(["paralab", options.command, *words])
    if rank.is_main:
        print(as_json(line, settings) if options.json or "--json" in options.words else f"{line}\n\n{table(settings)}")
    return 0


def settings_of(planned: Planned, rank: "Rank") -> Iterator[Setting]:
    """Yield each option of a command with its values and their origin."""
    final = [{**case.every_option(rank), **planned.decided} for case in planned.cases] or [{**planned.decided}]
    for declared in fields(planned.requested):
        name, given = declared.name, planned.origins.get(declared.name)
        requested = getattr(planned.requested, name) if given else declared.default
        values = _distinct(requested if options.get(name) is None else options[name] for options in final)
        origin = given or DEFAULT
        if values != [requested]:
            origin = _from_launcher(name, values, rank) or CHOSEN
        absent = _unused(name, planned) or declared.metadata["unset"] or "none"
        yield Setting(name, declared.metadata["group"], values, origin, absent)


def _distinct(values: Iterator[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def _from_launcher(name: str, values: Sequence[Any], rank: "Rank") -> Origin | None:
    """Return the launcher as the origin of a value that it decided, None where it did not."""
    decided = {"nproc": [rank.world_size], "engine": [rank.launcher]}
    if rank.launcher == "accelerate":
        decided["ds_config"] = list(values)
    if rank.elastic:
        decided["layout"] = list(values)
    return Origin("launcher", rank.launcher) if rank.launcher != "python" and decided.get(name) == values else None


def _unused(name: str, planned: Planned) -> str:
    """Say why an option has no value, where that is because nothing in these cases uses it."""
    if name in ("seq_len", "norm", "residual", "n_classes", "tokenizer") and planned.cases:
        missing = all(not hasattr(case.model_config, name) for case in planned.cases)
        return f"not used by {planned.cases[0].spec.name} {planned.cases[0].size}" if missing else ""
    if name == "backend":
        return "not used by one process"
    if name == "ds_config" and all(case.run.engine == "torch" for case in planned.cases):
        return "not used by engine torch"
    return ""


def _run(words: list[str], rank: "Rank") -> Planned:
    from paralab.benchmarks import run
    from paralab.planning.requested_layout import with_processes_of
    from paralab.planning.resolve import resolve

    config, origins = read(words, config=run.CommandConfig, prog="paralab run", description=run.__doc__)
    return Planned(config, origins, [resolve(with_processes_of(config, rank))])


def _overhead(words: list[str], rank: "Rank") -> Planned:
    from paralab.benchmarks import overhead
    from paralab.planning.requested_layout import with_processes_of
    from paralab.planning.resolve import resolve

    config, origins = read(words, config=overhead.OverheadConfig, prog="paralab overhead", description=overhead.__doc__)
    overhead.check(config)
    return Planned(config, origins, [resolve(with_processes_of(config, rank))])


def _train(words: list[str], rank: "Rank") -> Planned:
    from paralab.commands import train
    from paralab.planning.resolve import resolve
    from paralab.training import epochs

    requested, config, origins = train.planned(words, rank)
    work = epochs.with_steps(resolve(config), steps_given=train.steps_given(origins))
    return Planned(requested, origins, [work])


def _tour(words: list[str], rank: "Rank") -> Planned:
    from paralab.benchmarks import tour
    from paralab.benchmarks.tour_worker import choose
    from paralab.planning.requested_layout import machine_processes, with_processes_of

    config, origins = read(words, config=tour.TourConfig, prog="paralab tour", description=tour.__doc__)
    tour.check(config)
    launched = with_processes_of(config, rank)
    nproc = launched.nproc or machine_processes()
    works, left_out = choose(launched, nproc)
    for name, reason in left_out.items():
        print(f"{name} left out: {reason}", file=sys.stderr)
    return Planned(config, origins, works, {"nproc": nproc})


def _verify(words: list[str], rank: "Rank") -> Planned:
    from paralab.commands import verify
    from paralab.commands.verify_cases import cases, completed
    from paralab.parity.reference import STEPS
    from paralab.planning.resolve import resolve

    config, origins = verify.requested(words)
    whole, nproc = completed(config)
    with contextlib.redirect_stdout(sys.stderr):  # where cases that are left out are named
        works = [resolve(case) for case in cases(whole, nproc)]
    return Planned(config, origins, works, {"nproc": nproc, "steps": STEPS, "warmup": 0})


def _bench(words: list[str], rank: "Rank") -> Planned:
    from paralab.benchmarks.sweep import bench
    from paralab.planning.resolve import resolve

    config, origins = read(words, config=bench.SweepConfig, prog="paralab bench", description=bench.__doc__)
    bench.check(config)
    with contextlib.redirect_stdout(sys.stderr):  # where cases that are left out are named
        cases = bench.cases_of(config)
    return Planned(config, origins, [resolve(case.config) for case in cases])


def _scale(words: list[str], rank: "Rank") -> Planned:
    from paralab.benchmarks import scaling
    from paralab.planning.resolve import resolve

    config, origins = read(words, config=scaling.ScaleConfig, prog="paralab scale", description=scaling.__doc__)
    clusters = scaling.clusters_of(config)
    cases = [resolve(replace(scaling.case_on(nodes, config), nproc=nodes)) for nodes in clusters.nodes]
    return Planned(config, origins, cases, clusters._asdict())


def _peers(words: list[str], rank: "Rank") -> Planned:
    from paralab.benchmarks import peers
    from paralab.planning.resolve import resolve
    from paralab.records.environment import Environment

    config, origins = read(words, config=peers.PeersConfig, prog="paralab peers", description=peers.__doc__)
    variants = peers.chosen(config.variants, gpus=Environment.read().gpu_count)
    runs = [resolve(peers.run_of(variant, config)) for variant in variants]
    return Planned(config, origins, runs, {"variants": variants})


COMMANDS: dict[str, Callable[[list[str], "Rank"], Planned]] = {
    "run": _run,
    "train": _train,
    "tour": _tour,
    "verify": _verify,
    "bench": _bench,
    "scale": _scale,
    "peers": _peers,
    "overhead": _overhead,
}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab config", usage="%(prog)s [--json] COMMAND [OPTION...]", description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print a JSON object instead of a table")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="Command whose options are printed")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="OPTION...", help="Options of that command")
    options = parser.parse_args(list(argv))
    if options.command not in COMMANDS:
        got = (
            f"{options.command} is not one{did_you_mean(options.command, COMMANDS)}"
            if options.command
            else "none given"
        )
        raise UsageError(f"a command that trains is needed, {got}: use one of {', '.join(COMMANDS)}")
    return options
