"""Draw results or training curves into one picture.

    paralab plot runs/bench.csv --out results.svg
    paralab plot runs/alice-ddp runs/alice-zero3 --out curves.svg
    paralab plot --layers runs/alice --out layers.png
    paralab plot --filters runs/digits --image 3 --out filters.png

Result files (.csv) become dots, one per run: throughput by strategy, in a panel for each model of a file. Folders of
paralab train become curves: the loss of every run over its steps, points for held-out losses, and below them how far
each run is from the first. --layers and --filters draw what is inside one network as it trains. Drawn as
`paralab report` draws; .png and .pdf need matplotlib.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.benchmarks.report.choices import CHECKPOINTS
from paralab.benchmarks.report.warned import told
from paralab.console.outputs import check_writable, write_whole
from paralab.console.pictures import FORMS, form_of
from paralab.errors import DataError, UsageError
from paralab.options.arguments import Parser, whole

if TYPE_CHECKING:
    from paralab.benchmarks.report.panels import Panels


def main(argv: Sequence[str]) -> int:
    """Draw a picture. Returns: 0.

    Raises: UsageError for a file that is no picture or cannot be written; DataError for results that cannot be read.
    """
    options = parser().parse_args(list(argv))
    if options.out.suffix.lower() not in FORMS:
        raise UsageError(f"--out {options.out} cannot be written as a picture: use a name ending in {', '.join(FORMS)}")
    check_writable(options.out, inputs=options.sources)
    from paralab.pages.raster import drawn  # numpy, which --help and refusals need not wait for

    with told("plot"):
        title = f"paralab plot {' '.join(map(str, options.sources))}"
        content = drawn(_charts(options), title=title, form=form_of(options.out))
    write_whole(options.out, content)
    print(options.out)
    return 0


def parser() -> Parser:
    """Return what reads the words of the command."""
    parser = Parser(prog="paralab plot", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="FILE|FOLDER", help="Result file (.csv), or folder of a training run"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("plot.svg"),
        metavar="FILE",
        help="Picture to write: .svg, .png or .pdf (default: plot.svg)",
    )
    inside = parser.add_mutually_exclusive_group()
    inside.add_argument(
        "--layers",
        action="store_true",
        help="Draw how the layers of one training run evolve: root mean squares of weights, gradients and updates, of "
        "a run with --layer-stats-every",
    )
    inside.add_argument(
        "--filters",
        action="store_true",
        help="Draw the filters of the first layer of one training run of resnet or vicreg, and its feature maps of a "
        f"held-out image: before training and at up to {CHECKPOINTS} of its checkpoints",
    )
    parser.add_argument(
        "--image",
        type=whole(0),
        metavar="N",
        help="Held-out image whose feature maps --filters draws, counted from 0 (default: 0)",
    )
    return parser


def _charts(options: Namespace) -> "Panels":
    from paralab.benchmarks.report import filters, layers, panels

    sources: Sequence[Path] = options.sources
    if options.image is not None and not options.filters:
        raise UsageError(f"--image {options.image} says which feature maps --filters draws: add --filters")
    for source in sources:
        if not source.exists():
            raise DataError(f"{source} is not there: give a result file or the folder of a training run")
    if options.layers:
        return [layers.charts(sources)]
    if options.filters:
        return filters.charts(sources, number=options.image or 0)
    folders = [source.is_dir() for source in sources]
    if any(folders) and not all(folders):
        raise UsageError("result files and folders of training do not fit one picture: give one kind")
    return panels.curves(sources) if all(folders) else panels.results(sources)
