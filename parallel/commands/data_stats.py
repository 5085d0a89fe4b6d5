"""Print what texts hold: sizes, words, exact duplicates, and characters that hint at damage.

    paralab data stats alice

The texts stay as they are; paralab data dedup writes them again without what repeats.
"""

import argparse
from typing import TYPE_CHECKING

from paralab.commands.data_texts import add_by, megabytes, parser_of, texts_of
from paralab.console.clock import Moment
from paralab.console.phases import Phases

if TYPE_CHECKING:
    import numpy as np

    from paralab.curation.units import Texts


def main(argv: list[str]) -> int:
    """Print the figures. Returns: 0. Raises: DataError for a text that cannot be read, or is empty."""
    options = _parse(argv)
    from paralab.curation.kept import signatures_of
    from paralab.curation.signatures import EXACT

    texts = texts_of(options)
    with Phases(Moment.now(), transient=True) as phases:
        found = signatures_of(texts, EXACT, workers=options.workers, phases=phases)
    width = max(len(name) for name, _ in _figures(texts, found))
    for name, figure in _figures(texts, found):
        print(f"{name:<{width}}  {figure}")
    return 0


def _figures(texts: "Texts", found: "np.ndarray") -> list[tuple[str, str]]:
    import numpy as np

    from paralab.curation.duplicates import exact

    n_bytes = int(found["n_bytes"].sum())
    again = [duplicate.unit for duplicate in exact(found)]
    repeated = int(found["n_bytes"][again].sum())
    shortest, middle, longest = (int(x) for x in np.percentile(found["n_bytes"], (0, 50, 100)))
    odd = int(found["n_odd"].sum())
    return [
        ("files", f"{len(texts.files):,}"),
        (texts.noun, f"{len(found):,}"),
        ("text", f"{megabytes(n_bytes)}, {int(found['n_chars'].sum()):,} characters"),
        ("words", f"{int(found['n_words'].sum()):,}"),
        (f"bytes of a {texts.by}", f"{shortest:,} to {longest:,}, half of them {middle:,} or fewer"),
        ("exact duplicates", f"{len(again):,} {texts.noun}, {repeated / n_bytes:.2%} of the bytes"),
        ("odd characters", f"{odd:,} (controls; U+FFFD, put for what was no UTF-8; U+FEFF)"),
    ]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = parser_of("paralab data stats", __doc__)
    add_by(parser)
    return parser.parse_args(argv)
