"""Write an HTML report of result files: tables, charts and verdicts in one file that opens offline.

    paralab report runs/bench.csv --out report.html

The page has no script and loads nothing from the network: its content security policy allows one style sheet, by hash.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from paralab.benchmarks.report import sections, work
from paralab.benchmarks.report.compare import ratio_text, verdict_text
from paralab.benchmarks.report.sources import Source, load
from paralab.benchmarks.report.work import amount
from paralab.console.outputs import check_writable, write_whole
from paralab.errors import ParalabError, UsageError
from paralab.options.arguments import Parser
from paralab.pages import page
from paralab.pages.page import Download
from paralab.records.cells import one_line

HERE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    try:
        options = _parser().parse_args(argv)
        check_writable(options.out, inputs=options.files)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            text = render(options.files, title=options.title, caught=caught)
        content = text.encode(errors="backslashreplace")
        write_whole(options.out, content)
    except ParalabError as error:
        print(f"paralab report: {one_line(str(error))}", file=sys.stderr)
        return error.exit_status
    print(f"wrote {options.out} ({len(content) / 1e3:.0f} kB)")
    return 0


def render(paths: Sequence[Path], *, title: str = "Results", caught: Sequence[warnings.WarningMessage] = ()) -> str:
    """Return the page for some CSV files. Logs of the ranks are read from the folders beside them.

    `caught` collects warnings while the files are read; they become caveats of the page.
    Raises: UsageError or DataError when a file cannot be read, or holds no run.
    """
    sources = load(paths)
    if not any(source.records for source in sources):
        files = ", ".join(map(str, paths))
        raise UsageError(f"{files}: no runs to report, give a CSV file with at least one that is no dry run")
    pieces = sections.pieces(sources)
    return page.render(
        HERE / "report.html",
        title=title,
        filters={"amount": amount, "ratio": ratio_text, "verdict": verdict_text, "show": work.show},
        pieces=pieces,
        caveats=[*sections.caveats(sources, pieces), *dict.fromkeys(str(warning.message) for warning in caught)],
        scaling=sections.scaling(sources),
        failures=sections.failures(pieces),
        stragglers=sections.stragglers(pieces),
        environment=sections.environment(sources),
        commands=sections.commands(pieces),
        downloads=[_download(source) for source in sources],
        runs=sum(len(source.records) for source in sources),
        dates=sections.dates(sources),
    )


def _download(source: Source) -> Download:
    content = source.path.read_bytes()
    name = f"{source.label.replace('/', '-')}{source.path.suffix}"
    return page.download(name, content, kind="text/csv", size=amount(len(content), "size_bytes"))


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
    parser.add_argument("--title", default="Results", metavar="TEXT", help="Title of the report (default: Results)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
