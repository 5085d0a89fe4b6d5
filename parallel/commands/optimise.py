"""Minimise a convex function by several methods, and compare their rates with theory.

    paralab optimise --problem logistic --nproc 2
    paralab optimise --problem logistic --methods gd,newton --l2 0.01
    paralab optimise --problem signal --out signal.csv --plot signal.png

logistic is multiclass logistic regression on images (the model of paralab train
--model logistic), with an l2 penalty: gradient descent (gd), stochastic
gradient descent (sgd, minibatch), variance-reduced gradients (svrg) and
Newton's method with the exact Hessian (newton). signal and images remove noise
by total variation, or by the l1 norm of cosine or wavelet coefficients:
subgradient, ista and fista. Everything is fp64.

The file has a line for each method and pass over the data. Methods that reduce
over ranks are compared with one process before they are measured.
"""

import sys
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paralab.console.clock import Moment
from paralab.console.outputs import check_outputs, write_whole
from paralab.console.pictures import FORMS, check_can_draw, form_of
from paralab.errors import ConfigError, did_you_mean
from paralab.options.arguments import Parser, positive, whole
from paralab.options.choices import CONVEX_METHODS, TRANSFORMS
from paralab.options.heading import is_first_process
from paralab.options.numbers import number_of

_ALONE = "sgd"  # takes one sample a step
_NEED_L2 = ("sgd", "minibatch", "svrg")  # their steps and theorems divide by the constant of strong convexity

# What each problem has where nothing is given; an option that it does not name has no use with it.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "logistic": {"epochs": 30, "size": "14", "data": "mnist", "l2": 0.01, "global_batch_size": 32},
    "signal": {"epochs": 1000, "tv": 1.0, "transform": (), "l1": 0.15, "noise_std": 0.2, "samples": 512},
    "images": {
        "epochs": 1000,
        "size": "28",
        "data": "mnist",
        "tv": 0.3,
        "transform": (),
        "l1": 0.15,
        "noise_std": 0.3,
        "samples": 16,
    },
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to minimise, and by which methods. of: the options of the problem, by name."""

    problem: str
    methods: tuple[str, ...]
    nproc: int
    seed: int
    of: Mapping[str, Any]


def main(argv: Sequence[str]) -> int:
    """Measure methods, print how far they came, and write the lines. Returns: 0, or 1 where parity failed.

    Raises: ConfigError for what does not fit together, or where the function has no minimum.
    """
    options = parser().parse_args(list(argv))
    asked = read(vars(options))
    check_outputs({"--out": options.out, "--plot": options.plot})
    if options.out and Path(options.out).suffix.lower() != ".csv":
        raise ConfigError(f"--out {options.out} is no table: use a name ending in .csv, and --plot for a picture")
    if options.plot and Path(options.plot).suffix.lower() not in FORMS:
        raise ConfigError(f"--plot {options.plot} is no picture: use a name ending in {', '.join(FORMS)}")
    check_can_draw(options.plot)
    began = Moment.now()
    from paralab.commands import optimise_plot, optimise_run, optimise_table
    from paralab.console.phases import Phases
    from paralab.running import task

    optimise_run.check(asked)
    task.announce(asked.nproc, Phases(began, shown=is_first_process()))
    found = task.start("paralab.commands.optimise_run:measure", began, asked, nproc=asked.nproc)
    if not is_first_process():
        return 0
    print("\n".join(optimise_table.table(asked, found)))
    if options.out:
        write_whole(Path(options.out), optimise_table.csv_of(asked, found))
    if options.plot:
        write_whole(Path(options.plot), optimise_plot.draw(asked, found, form=form_of(Path(options.plot))))
    return 0 if optimise_table.passed(found) else 1


def read(options: Mapping[str, Any]) -> Asked:
    """Return what was asked. options: by name, None where nothing was given.

    Raises: ConfigError for an option or a method that the problem does not have, or that ranks cannot divide.
    """
    problem, nproc = options["problem"], options["nproc"]
    defaults = DEFAULTS[problem]
    for name in sorted({name for others in DEFAULTS.values() for name in others}):
        if options[name] is not None and name not in defaults:
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to --problem {problem}: leave it out")
    of = {name: default if options[name] is None else options[name] for name, default in defaults.items()}
    if problem == "signal" and nproc > 1:
        raise ConfigError(
            f"--problem signal with --nproc {nproc}: it is one signal, use --nproc 1, or --problem images"
        )
    methods = _methods(options["methods"], problem, nproc)
    _check_penalty(options)
    l2_needed = [name for name in methods if name in _NEED_L2]
    if of.get("l2") == 0 and l2_needed:
        raise ConfigError(
            f"--l2 0 with {l2_needed[0]}, whose steps follow from strong convexity: use --l2 above 0, or --methods "
            "gd,newton"
        )
    return Asked(problem=problem, methods=methods, nproc=nproc, seed=options["seed"], of=of)


def _check_penalty(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for the weight of another penalty than the one that is asked for."""
    if options["transform"] and options["tv"] is not None:
        raise ConfigError("--tv beside --transform, which takes the place of total variation: use --l1 for its weight")
    if options["l1"] is not None and not options["transform"]:
        raise ConfigError("--l1 is the weight of coefficients: name them, --transform dct,haar, or use --tv")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _named_twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _transforms(text: str) -> tuple[str, ...]:
    names = _words(text)
    if twice := _named_twice(names):
        raise ArgumentTypeError(f"{twice} is there twice: name it once")
    for name in names:
        if name not in TRANSFORMS:
            raise ArgumentTypeError(f"{name!r} is unknown{did_you_mean(name, TRANSFORMS)}: use {', '.join(TRANSFORMS)}")
    return names


def _methods(given: str | None, problem: str, nproc: int) -> tuple[str, ...]:
    known = CONVEX_METHODS[problem]
    if given is None:
        return tuple(name for name in known if name != _ALONE or nproc == 1)
    names = _words(given)
    if twice := _named_twice(names):
        raise ConfigError(f"--methods {given} has {twice} twice: use --methods {','.join(dict.fromkeys(names))}")
    for name in names:
        if name not in known:
            elsewhere = next((other for other, theirs in CONVEX_METHODS.items() if name in theirs), None)
            why = f"is for --problem {elsewhere}" if elsewhere else f"is unknown{did_you_mean(name, known)}"
            raise ConfigError(f"method {name!r} {why}: for --problem {problem} use {', '.join(known)}")
    if _ALONE in names and nproc > 1:
        raise ConfigError(
            f"sgd takes one sample a step, which {nproc} processes cannot divide: use minibatch, or --nproc 1"
        )
    return names


def parser() -> Parser:
    """Return what reads the words of the command."""
    parser = Parser(prog="paralab optimise", description=__doc__)
    parser.add_argument(
        "--problem", choices=tuple(DEFAULTS), default="logistic", help="Function to minimise (default: logistic)"
    )
    parser.add_argument(
        "--methods", metavar="NAME,NAME", help="Methods to compare (default: all that the problem and --nproc allow)"
    )
    parser.add_argument("--nproc", metavar="N", type=whole(1), default=1, help="Number of processes (default: 1)")
    parser.add_argument("--epochs", metavar="N", type=whole(1), help=f"Passes over the data ({_default('epochs')})")
    parser.add_argument("--size", help=f"Pixels of height and width: 28, 14 or 7 ({_default('size')})")
    parser.add_argument(
        "--data", metavar="NAME", help=f"Images, as --data of paralab run has them ({_default('data')})"
    )
    _add_numbers(parser)
    parser.add_argument(
        "--seed", metavar="N", type=whole(0), default=0, help="Seed of batches, signal and noise (default: 0)"
    )
    parser.add_argument("--out", metavar="FILE.csv", help="Write a line for each method and epoch to this file")
    parser.add_argument("--plot", metavar="FILE", help="Draw what is in these lines: .svg, .png or .pdf")
    return parser


def _add_numbers(parser: Parser) -> None:
    """Add the options that some problems have, and what they are by default."""
    parser.add_argument(
        "--l2",
        metavar="X",
        type=_at_least_zero,
        help=f"Weight of half the squared norm of the weights ({_default('l2')})",
    )
    parser.add_argument(
        "--global-batch-size",
        metavar="N",
        type=whole(1),
        help=f"Samples a step of minibatch and svrg, over all processes together ({_default('global_batch_size')})",
    )
    parser.add_argument("--tv", metavar="X", type=positive, help=f"Weight of the total variation ({_default('tv')})")
    parser.add_argument(
        "--transform",
        metavar="NAME,NAME",
        type=_transforms,
        help="Penalise coefficients in these orthonormal bases, and not the total variation: dct (discrete cosines), "
        "haar (wavelets), or dct,haar (both). Means are not penalised (default: total variation)",
    )
    parser.add_argument(
        "--l1", metavar="X", type=positive, help=f"Weight of the coefficients' absolute values ({_default('l1')})"
    )
    parser.add_argument(
        "--noise-std",
        metavar="X",
        type=positive,
        help=f"Standard deviation of the noise; values are in [-1, 1] ({_default('noise_std')})",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=whole(2),
        help=f"Length of the signal, or number of images ({_default('samples')})",
    )


def _default(name: str) -> str:
    of = {problem: defaults[name] for problem, defaults in DEFAULTS.items() if name in defaults}
    if len(set(of.values())) == 1:
        return f"default: {next(iter(of.values()))}"
    return "default: " + ", ".join(f"{value} for {problem}" for problem, value in of.items())


def _at_least_zero(text: str) -> float:
    return 0.0 if number_of(text) == 0 else positive(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
