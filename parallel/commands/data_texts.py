"""What `paralab data stats` and `paralab data dedup` have in common: their texts, and how the work is shared."""

import argparse
from typing import TYPE_CHECKING, get_args

from paralab.options.arguments import Parser, whole

if TYPE_CHECKING:
    from paralab.curation.units import Texts


MOST_WORKERS = 256  # each a process of its own


def parser_of(prog: str, description: str | None) -> Parser:
    parser = Parser(prog=prog, description=description)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILES",
        help="Texts: files (.txt, .md, .jsonl, .json, .csv, .tsv, .parquet, also with .gz), folders, or alice, the "
        "built-in book",
    )
    add_shared(parser)
    return parser


def add_shared(parser: Parser) -> None:
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="Column that holds the text, of tables (default: text)"
    )
    parser.add_argument(
        "--workers",
        type=whole(1, MOST_WORKERS),
        default=1,
        metavar="N",
        help="Number of processes that share the work (default: 1)",
    )


def add_by(parser: Parser) -> None:
    from paralab.curation.units import By

    parser.add_argument(
        "--by",
        choices=get_args(By),
        help="What plain texts are divided into: whole files (document), what stands between blank lines (paragraph), "
        "or lines (default: paragraph; rows of tables are documents)",
    )


def texts_of(options: argparse.Namespace) -> "Texts":
    """Find the texts of a command line. Raises: DataError where one cannot be read, or all are empty."""
    from paralab.curation.units import Texts
    from paralab.errors import DataError

    texts = Texts.of(options.files, by=options.by, column=options.text_column)
    if next(texts.units(), None) is None:
        raise DataError(f"{', '.join(map(str, texts.files))}: there is no text in it: give one that is not empty")
    return texts


def megabytes(n_bytes: int) -> str:
    return f"{n_bytes:,} bytes" if n_bytes < 10**6 else f"{n_bytes / 1e6:,.1f} MB"
