"""Curate texts before a training: what they hold, what repeats, which tokenizer suits them.

    paralab data stats book.txt                       sizes, exact duplicates
    paralab data dedup rows.jsonl --out unique.jsonl  without what repeats
    paralab data tokenize book.txt --out runs/tokenizers

paralab data stats --help, and so on, list the options of each (docs/data-curation.md).
"""

import argparse
from importlib import import_module

from paralab.options.arguments import Parser

_COMMANDS = ("stats", "dedup", "tokenize")


def main(argv: list[str]) -> int:
    """Run one of the commands; return its exit status."""
    parser = Parser(prog="paralab data", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS, metavar="|".join(_COMMANDS), help="What to do")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="FILES...", help="Its texts and options")
    command = parser.parse_args(argv[:1]).command
    return import_module(f"paralab.commands.data_{command}").main(argv[1:])
