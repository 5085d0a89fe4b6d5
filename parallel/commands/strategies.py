"""List the strategies: the layout that each stands for, when to use it and what it costs.

    paralab strategies --nproc 8

A strategy is a name for a layout: --strategy of paralab run, train and other commands takes it.
"""

import argparse
import textwrap
from collections.abc import Sequence

from paralab.layout.strategies import STRATEGIES, Strategy, example
from paralab.options.arguments import Parser, whole


def main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    print(markdown(options.nproc) if options.markdown else text(options.nproc))
    return 0


def text(nproc: int) -> str:
    """Return the lines of each strategy, in 80 columns: layout, when to use it, what it costs."""
    lines = ["strategy  layout, when to use it and what it costs"]
    for strategy in STRATEGIES.values():
        also = f", also called {', '.join(strategy.aliases)}" if strategy.aliases else ""
        lines += [
            f"{strategy.name:<8}  {_layout(strategy, nproc)}{also}",
            *_wrapped(f"when: {strategy.when}"),
            *_wrapped(f"costs: {strategy.costs}"),
        ]
    return "\n".join(lines)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, width=80, initial_indent=" " * 10, subsequent_indent=" " * 12)


def markdown(nproc: int) -> str:
    """Return the table of the README."""
    lines = [f"| strategy | layout on {nproc} | when | what it costs |", "|---|---|---|---|"]
    for strategy in STRATEGIES.values():
        names = ", ".join(f"`{name}`" for name in (strategy.name, *strategy.aliases))
        lines.append(f"| {names} | {_layout(strategy, nproc, quote='`')} | {strategy.when} | {strategy.costs} |")
    return "\n".join(lines)


def _layout(strategy: Strategy, nproc: int, *, quote: str = "") -> str:
    layout = example(strategy.name, nproc)
    ranks = layout.world_size
    return f"{quote}{layout}{quote}" + ("" if ranks == nproc else f" ({ranks} rank{'s' if ranks > 1 else ''})")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="paralab strategies",
        description=__doc__,
    )
    parser.add_argument(
        "--nproc",
        type=whole(1),
        default=4,
        metavar="N",
        help="Number of processes to show the layouts for (default: 4)",
    )
    parser.add_argument("--markdown", action="store_true", help="Print a Markdown table, as in the README")
    return parser.parse_args(list(argv))
