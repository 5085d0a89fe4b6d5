"""The part of a text that is held out, and pieces of it that have the tokens of the whole."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from paralab.data.text_files import Document

HELD_OUT_TENTH = 10  # of a text: one part in ten, at the end
HELD_OUT_DOCUMENT = 20  # of so many documents or more: one in twenty
_FAR_CHARS = 1 << 20  # how far from the last tenth a line break or blank is looked for, at most
_PIECE_CHARS = 1 << 16
_LONGEST_PIECE_CHARS = 1 << 20
# Where GPT-2's pattern always ends a word, so that pieces cut there have the tokens of the whole text: before a blank,
# and between a letter or digit and a punctuation mark. Both as far as all versions of Unicode agree on what is which.
_MARKS = r"[!-/:-@\[-`{-~\u3001-\u3003\uff01-\uff0f]"
_LAST_CUT = re.compile(rf".*(?:(?<=\S)(?=[ \t\n\u3000])|(?<=[^\W_])(?={_MARKS}))", re.DOTALL)
Pieces = Iterator[tuple[str, bool]]  # text, and whether a document ends with it


def held_out(documents: Iterator[Document], split: str) -> Pieces:
    """Give every twentieth document to validation; of fewer than twenty the last tenth of each."""
    first = list(islice(documents, HELD_OUT_DOCUMENT))
    if len(first) < HELD_OUT_DOCUMENT:
        return (piece for document in first for piece in _ended(cut(part(document, split))))
    validation = split == "validation"
    numbered = enumerate(chain(first, documents), start=1)
    return (x for i, doc in numbered if (i % HELD_OUT_DOCUMENT == 0) == validation for x in closed(doc))


def closed(document: Document) -> Pieces:
    """Yield the pieces of a whole document, the last of them as its end."""
    return _ended(cut(document.blocks()))


def _ended(pieces: Iterator[str]) -> Pieces:
    last = ""
    for piece in pieces:
        if last:
            yield last, False
        last = piece
    yield last, True


def part(document: Document, split: str) -> Iterator[str]:
    """Yield the first nine tenths of a text, or the rest: from a line break on, or a blank, where one is near."""
    point = _point(document)
    start, stop = (0, point) if split == "train" else (point, document.n_chars)
    return _between(document, start, stop)


def _between(document: Document, start: int, stop: int) -> Iterator[str]:
    position = 0
    for block in document.blocks():
        if wanted := block[max(0, start - position) : max(0, stop - position)]:
            yield wanted
        position += len(block)
        if position >= stop:
            return


def _point(document: Document) -> int:
    """Return where the last tenth begins. What is looked for a break is less than half of it."""
    point = document.n_chars - document.n_chars // HELD_OUT_TENTH
    near = min(_FAR_CHARS, document.n_chars // (2 * HELD_OUT_TENTH))
    text = "".join(_between(document, point, point + near))
    if (line := text.find("\n")) >= 0:
        return point + line + 1
    return point + max(0, text.find(" "))  # a word of GPT-2's begins with the blank before it


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Regroup a text into pieces that have the tokens of the whole, together.

    They depend on the text alone, not on its blocks. Where nothing but letters goes on for a million characters it is
    cut all the same, so that memory does not grow with the text; the tokens beside such a cut may be other ones.
    """
    pending = ""
    for block in _of_equal_size(blocks):
        seen = max(0, len(pending) - 1)
        pending += block
        match = _LAST_CUT.match(pending, seen)
        end = match.end() if match else len(pending) if len(pending) >= _LONGEST_PIECE_CHARS else 0
        if end:
            yield pending[:end]
            pending = pending[end:]
    if pending:
        yield pending


def _of_equal_size(blocks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        rest += block
        full = len(rest) - len(rest) % _PIECE_CHARS
        for start in range(0, full, _PIECE_CHARS):
            yield rest[start : start + _PIECE_CHARS]
        rest = rest[full:]
    if rest:
        yield rest
