"""Train tokenizers on a text, and compare them with the built-in ones on its held-out part.

    paralab data tokenize alice --vocabulary 4096 --out runs/tokenizers
    paralab train --data alice --tokenizer runs/tokenizers/bpe/tokenizer.json

Those that are there already, of the same text and size, are kept: a command that was interrupted goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paralab.commands.data_texts import add_shared
from paralab.console.clock import Moment
from paralab.console.outputs import check_writable
from paralab.console.phases import Phases
from paralab.errors import DataError, UsageError, did_you_mean
from paralab.options.arguments import Parser, whole

if TYPE_CHECKING:
    from paralab.curation.compare_tokenizers import Compared, Corpus, Training

MOST_TOKENS = 1_000_000  # a trainer sets aside memory for as many
_DEGREES = (2, 4, 8, 16, 64)  # of tensor parallelism, in the table
_LONG_CHARS = 1 << 20  # a few seconds
_BUILT_IN = ("bytes", "gpt2")


def main(argv: list[str]) -> int:
    """Train, compare, print. Returns: 0. Raises: UsageError, DataError for a text that cannot be read or is empty."""
    options = _parse(argv)
    from paralab.curation.compare_tokenizers import Corpus, Training, compare_all
    from paralab.curation.train_tokenizer import KINDS

    kinds = _kinds(options.kinds, (*_BUILT_IN, *KINDS))
    corpus = Corpus(tuple(options.files), options.text_column)
    _check_text(corpus)
    trainings = [
        Training(kind, corpus, options.vocabulary, Path(options.out) / kind) for kind in kinds if kind in KINDS
    ]
    for training in trainings:
        check_writable(training.file, make_folders=True)
    with Phases(Moment.now()) as phases, corpus.unchanged():
        _train(trainings, corpus, workers=options.workers, phases=phases)
        phases.begin("comparing", total=len(kinds))
        compared = []
        for one in compare_all(trainings, [kind for kind in kinds if kind in _BUILT_IN], corpus):
            compared.append(one)
            phases.advance()
    print("\n".join(_table(compared)), end="\n\n")
    for one, training in zip(compared[-len(trainings) :] if trainings else [], trainings, strict=True):
        note = "" if one.vocabulary == options.vocabulary else f" ({one.vocabulary:,} tokens: that many it found)"
        print(f"{training.file}{note}")
    return 0


def _train(trainings: "Sequence[Training]", corpus: "Corpus", *, workers: int, phases: Phases) -> None:
    from paralab.curation.compare_tokenizers import do
    from paralab.curation.progress import in_order

    open_ = [training for training in trainings if not training.is_done()]
    if there := [training.kind for training in trainings if training not in open_]:
        phases.begin(f"there already: {', '.join(there)}")
    if open_:
        phases.begin(f"training {', '.join(training.kind for training in open_)}", total=len(open_))
    for _ in in_order(do, open_, workers=min(workers, max(1, len(open_))), apart=_is_long(corpus)):
        phases.advance()


def _is_long(corpus: "Corpus") -> bool:
    """Tell whether a tokenizer is trained for longer than a process needs to start."""
    read = 0
    return any((read := read + len(text)) > _LONG_CHARS for text in corpus.pieces("train"))


def _table(compared: "Sequence[Compared]") -> list[str]:
    """Return the lines of the comparison, in 80 columns."""
    from paralab.curation.compare_tokenizers import padding

    width = max(9, *(len(one.name) for one in compared))
    degrees = " ".join(f"{f'tp{degree}':>4}" for degree in _DEGREES)
    lines = [
        f"on {compared[0].n_bytes:,} bytes that none was trained on; right: rows that the vocabulary",
        "lacks to divide over so many tensor ranks (models here pad to a multiple of 64)",
        "",
        f"{'tokenizer':<{width}}  {'tokens':>9}  {'tokens/byte':>11}  {'vocabulary':>10}  {'used':>6}  {degrees}",
    ]
    for one in compared:
        rows = " ".join(f"{padding(one.vocabulary, degree):>4}" for degree in _DEGREES)
        share = f"{one.n_tokens:>9,}  {one.tokens_per_byte:>11.3f}"
        lines.append(f"{one.name:<{width}}  {share}  {one.vocabulary:>10,}  {one.used:>6,}  {rows}")
    return lines + [f"{one.name} does not give the text back as it was" for one in compared if not one.exact]


def _kinds(text: str, known: Sequence[str]) -> list[str]:
    kinds = text.split(",")
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise UsageError(f"--kinds {text} has {twice} twice: use --kinds {','.join(dict.fromkeys(kinds))}")
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"--kinds {kind!r} is unknown{did_you_mean(kind, known)}: use {', '.join(known)}")
    return kinds


def _check_text(corpus: "Corpus") -> None:
    for split, what in (("train", "to train on"), ("validation", "to compare on")):
        if not any(text.strip() for text in corpus.pieces(split)):
            raise DataError(f"{', '.join(corpus.names)}: there is no text {what}: give one that is not empty")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="paralab data tokenize", description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILES", help="Texts, by the names that --data takes")
    add_shared(parser)
    parser.add_argument(
        "--out",
        default="runs/tokenizers",
        metavar="DIR",
        help="Folder to write tokenizers to (default: runs/tokenizers)",
    )
    parser.add_argument(
        "--vocabulary",
        type=whole(1, MOST_TOKENS),
        default=4096,
        metavar="N",
        help="Number of tokens of each tokenizer that is trained: 257 or more, for the 256 bytes and the end of a text "
        "(default: 4096)",
    )
    parser.add_argument(
        "--kinds",
        default="bytes,gpt2,bpe,wordpiece,unigram",
        metavar="A,B",
        help="Tokenizers to compare: the built-in bytes and gpt2, and those that are trained: bpe, wordpiece, unigram "
        "(default: all of these)",
    )
    options = parser.parse_args(argv)
    from paralab.curation.train_tokenizer import LEAST

    if options.vocabulary < LEAST:
        raise UsageError(
            f"--vocabulary {options.vocabulary} does not hold the 256 bytes and the end of a text: use {LEAST} or more"
        )
    return options
