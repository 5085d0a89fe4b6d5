"""Write an HTML report of result files: tables, charts and verdicts in one file that opens offline.

    paralab report runs/bench.csv --out report.html
    paralab report cpu.csv nodes.csv gpu.csv --price-per-hour cpu=0.05,gpu=2.50

The page loads nothing from the network: its content security policy allows one style sheet and one script, by hash. All
content is there without the script, which folds, sorts, filters and copies.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paralab.benchmarks.report.warned import told
from paralab.console.clock import Moment
from paralab.console.outputs import check_writable, write_whole
from paralab.console.phases import Phases
from paralab.errors import ParalabError
from paralab.options.arguments import Parser
from paralab.records.cells import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        options = _parser().parse_args(argv)
        check_writable(options.out, inputs=options.files)
        return _write(options)
    except ParalabError as error:
        print(f"paralab report: {one_line(str(error))}", file=sys.stderr)
        return error.exit_status


def _write(options: argparse.Namespace) -> int:
    from paralab.benchmarks.report import machines, results_page
    from paralab.benchmarks.report.work import amount

    phases = Phases(Moment.now(), transient=True)
    with told("report") as caught, phases:
        prices = machines.prices_of(options.price_per_hour)
        text, by_machine = results_page.composed(
            options.files, title=options.title, prices=prices, caught=caught, phases=phases
        )
    content = text.encode(errors="backslashreplace")
    write_whole(options.out, content)
    print(f"wrote {options.out} ({amount(len(content), 'size_bytes')})")
    if by_machine:
        print(machines.text(by_machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="paralab report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.csv", help="Result file")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE.html",
        help="Report to write (default: report.html)",
    )
    parser.add_argument(
        "--price-per-hour",
        metavar="cpu=X,gpu=X",
        help="Dollars for an hour of a node without GPUs, and of a GPU, from which the cost of samples follows where "
        "the same work was done on different machines (default: no cost)",
    )
    parser.add_argument("--title", default="Results", metavar="TEXT", help="Title of the report (default: Results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
